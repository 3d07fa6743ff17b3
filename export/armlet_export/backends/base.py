"""Input and output of every backend: a part of a model in one precision, and its finished program.

Precisions:

- ``int8``: weights and the ends of the layers as quantisation-aware training left them
  (:mod:`armlet_export.quantise.fake_quant`);
- ``dynamic``: int8 weights, each layer's input rounded by the range that it has in that call;
- ``fp16``: weights stored as fp16 and computed with in float32;
- ``fp32``: float32.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from importlib.metadata import version

import torch
from torch import Tensor, fx, nn

from armlet_runtime.errors import ExportError

from ..quantise import dynamic, layer_ranges
from .program import Program

STATE, NEXT_STATE = "state", "next_state"
"""Names of what an incremental encoder takes over, and leaves."""

PRECISIONS = ("int8", "dynamic", "fp16", "fp32")
"""By the size of the file, smallest first; ``dynamic`` has the bytes of ``int8`` and takes longer."""


@dataclass(frozen=True)
class Signature:
    """Names and shapes of a program's inputs and outputs, as the manifest promises them.

    ``state`` is the shape of the second input of a step program, see :mod:`armlet_export.streaming`.
    """

    input: str
    input_shape: tuple[int, ...]
    outputs: dict[str, tuple[int, ...]]
    state: tuple[int, ...] | None = None

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """Every input's name and shape, in the program's order."""
        return {self.input: self.input_shape} | ({STATE: self.state} if self.state is not None else {})

    @property
    def is_incremental(self) -> bool:
        """Whether it is that of an encoder which gives a state to go on from."""
        return NEXT_STATE in self.outputs

    def example(self) -> Tensor:
        """An input of that shape."""
        return torch.zeros(self.input_shape)

    def examples(self) -> tuple[Tensor, ...]:
        """One for every input."""
        return tuple(torch.zeros(shape) for shape in self.inputs.values())


@dataclass(frozen=True)
class Part:
    """An encoder or the aggregator, ready to be lowered.

    Attributes:
        module: The float module.
        signature: Its input and outputs; a ``.pte`` has no names, so their order is what counts.
        precision: One of :data:`PRECISIONS`.
        prepared: Its trained graph from :func:`armlet_export.quantise.fake_quant.prepare`; for ``int8`` only.
    """

    module: nn.Module
    signature: Signature
    precision: str
    prepared: fx.GraphModule | None = None

    def reference(self) -> nn.Module:
        """The PyTorch module that the program must agree with, rounding simulated."""
        if self.precision == "int8":
            assert self.prepared is not None
            return self.prepared
        if self.precision == "dynamic":
            return dynamic(self.module, self.signature.example())
        if self.precision == "fp16":
            return rounded_to_fp16(self.module)
        return self.module

    @property
    def layers(self) -> int:
        """How many layers with weights were trained to be int8."""
        return sum(layer.weight is not None for layer in layer_ranges(self.prepared)) if self.prepared else 0

    @property
    def trained(self) -> fx.GraphModule:
        """The prepared graph of an int8 part."""
        assert self.prepared is not None
        return self.prepared


def rounded_to_fp16(module: nn.Module) -> nn.Module:
    """A copy of a module whose weights have the values that fp16 can hold."""
    rounded = copy.deepcopy(module)
    for parameter in rounded.parameters():
        if parameter.ndim > 1:  # weights; biases stay float32
            parameter.data = parameter.data.half().float()
    return rounded


@dataclass(frozen=True)
class LoweredPart:
    """A finished program: its file, its precision, and what was seen in it."""

    data: bytes
    precision: str
    program: Program


def library_changed(package: str, known_version: str, problem: str) -> ExportError:
    """The error for a library whose undocumented parts are no longer as a backend knows them.

    Args:
        package: Name of the distribution.
        known_version: The version that the backend was written for.
        problem: What cannot be done now, or what was expected and is missing.
    """
    return ExportError(
        f"{problem}; this relies on undocumented parts of {package} {known_version}, and {version(package)} is "
        f"installed: pip install {package}=={known_version}"
    )
