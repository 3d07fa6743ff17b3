"""The view that fits standard output."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..log import is_journal
from .journal import JournalView
from .line_writer import BackgroundWriter
from .lines import LineView
from .monitor import Monitor
from .terminal import TerminalView

if TYPE_CHECKING:
    from ..modalities import Modality
    from ..model import Policy


def make_view(monitor: Monitor, modalities: Sequence[Modality], policy: Policy) -> LineView:
    """A screen on a terminal, sentences in the journal, else lines; no view waits for a stalled reader.

    ``policy``: see :class:`LineView`.
    """
    if sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return TerminalView(monitor, modalities)
    sys.stdout.flush()  # text printed so far comes before the view's lines
    writer = BackgroundWriter(sys.stdout.fileno(), sys.stderr.fileno())
    return JournalView(policy, writer) if is_journal(sys.stdout.fileno()) else LineView(policy, writer)
