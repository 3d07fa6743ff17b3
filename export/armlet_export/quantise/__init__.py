"""Quantisation-aware training: graph rewrites, fake quantisation, the training itself.

Imports training and the runtime.
"""

from .capture import capture, weighted_nodes
from .fake_quant import (
    WEIGHT_MAX,
    LayerRanges,
    Range,
    convert,
    dynamic,
    layer_ranges,
    learn_ranges,
    output_range,
    prepare,
    with_ranges_of,
)
from .graph_rewrites import rewrite
from .qat import STAGE, EpochReport, is_prepared, prepare_model, prepared_part, train

__all__ = [
    "STAGE",
    "WEIGHT_MAX",
    "EpochReport",
    "LayerRanges",
    "Range",
    "capture",
    "convert",
    "dynamic",
    "is_prepared",
    "layer_ranges",
    "learn_ranges",
    "output_range",
    "prepare",
    "prepare_model",
    "prepared_part",
    "rewrite",
    "train",
    "weighted_nodes",
    "with_ranges_of",
]
