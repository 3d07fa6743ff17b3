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

_NAMES = {
    "bench": ("BenchReport", "DECISION", "cases", "engines_to_measure", "fresh_start", "measure_engines"),
    "cold_start": ("FreshStart",),
    "export_proof": ("Draft", "ProofReport"),
    "live_score": ("LiveScore", "PlayEvent", "score_live"),
}


def __getattr__(name: str) -> Any:
    # A check runs in a process of its own and is measured there: it loads what it needs and nothing else.
    for module, names in _NAMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
