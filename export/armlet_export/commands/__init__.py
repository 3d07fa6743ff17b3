"""Commands that the armlet command line finds through the entry-point group ``armlet.commands``."""
