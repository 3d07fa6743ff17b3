"""The board: recordings, windows, bundles, engines, the live loop and the armlet command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Live, open_live
    from .decisions import Decision

__all__ = ["Decision", "Live", "open_live"]


def __getattr__(name: str) -> Any:
    # A command that decides nothing need not load what does.
    if name in __all__:
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
