"""The board: recordings, windows, bundles, engines, the live loop and the armlet command."""
