"""Checks of a bundle that run in a process of their own, and the figures of such processes.

Imports every wing but the views and the commands; each check is loaded when it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bench import DECISION, BenchReport, cases, engines_to_measure, fresh_start, measure_engines
    from .cold_start import FreshStart
    from .export_proof import Draft, ProofReport
    from .live_score import LiveScore, PlayEvent, score_live

__all__ = [
    "DECISION",
    "BenchReport",
    "Draft",
    "FreshStart",
    "LiveScore",
    "PlayEvent",
    "ProofReport",
    "cases",
    "engines_to_measure",
    "fresh_start",
    "measure_engines",
    "score_live",
]

_HOME = {
    "BenchReport": "bench",
    "DECISION": "bench",
    "Draft": "export_proof",
    "FreshStart": "cold_start",
    "LiveScore": "live_score",
    "PlayEvent": "live_score",
    "ProofReport": "export_proof",
    "cases": "bench",
    "engines_to_measure": "bench",
    "fresh_start": "bench",
    "measure_engines": "bench",
    "score_live": "live_score",
}


def __getattr__(name: str) -> Any:
    # A check runs in a process of its own and is measured there: it loads what it needs and nothing else.
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
