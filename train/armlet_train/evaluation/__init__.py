"""Figures: scores by subset and person, and the suites that compare methods.

Imports every wing but the commands.
"""

from . import bench_masking, bench_methods, bench_one_shot, bench_specialists, scores, tables
from .scores import Evaluation, SubsetScore

__all__ = [
    "Evaluation",
    "SubsetScore",
    "bench_masking",
    "bench_methods",
    "bench_one_shot",
    "bench_specialists",
    "scores",
    "tables",
]
