"""Models: encoders, aggregators and mask tokens, each built from a recipe.

Imports the recipes and the distributed root module.
"""

from . import build, cbramod, cbramod_encoder, lora
from .base import ArmletModel, Encoder, fold_batchnorm
from .build import build_model
from .cbramod import CBraMod
from .cbramod_encoder import CBraModEncoder
from .conv import ConvEncoder
from .mumae import VARIANCE_EPS, JointAggregator, SpanEncoder, Transformer, VideoEncoder, sine_cosine

__all__ = [
    "VARIANCE_EPS",
    "ArmletModel",
    "CBraMod",
    "CBraModEncoder",
    "ConvEncoder",
    "Encoder",
    "JointAggregator",
    "SpanEncoder",
    "Transformer",
    "VideoEncoder",
    "build",
    "build_model",
    "cbramod",
    "cbramod_encoder",
    "fold_batchnorm",
    "lora",
    "sine_cosine",
]
