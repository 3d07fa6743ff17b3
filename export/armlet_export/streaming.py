"""Incremental encoders: a hop later most of what an encoder computed still holds, and is carried instead of computed.

Of an encoder of convolutions (``kind = "conv"``), a column of the last layer that touches no padding in any layer
depends on its samples alone. One hop later the same samples lie a hop further left, and so does the column. Anew are
only the columns at the two ends. So a modality gets two programs:

- the windowed encoder, which gives, besides the ``token``, the ``state``: the columns that will hold a hop later;
- the *step* program, which takes the first ``head`` and the last ``tail`` samples of the next window, joined, and the
  state before. It runs the same layers over them, throws away the columns that the seam spoiled, puts the carried ones
  in their place, and gives token and next state.

Both programs average the same columns, so float32 tokens differ by the order of sums, and int8 ones not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armlet_runtime.bundle import HOP_SLACK
from armlet_runtime.errors import ExportError
from armlet_runtime.modalities import Modality
from armlet_runtime.windows import WindowSpec
from armlet_train.models import ConvEncoder

from .backends import Part, Signature
from .quantise import prepare, with_ranges_of


@dataclass(frozen=True)
class StepPlan:
    """What of a window is carried; columns are those of the last convolution, samples those of the modality.

    Attributes:
        length: Samples of a window.
        hop: Samples from one window to the next.
        features: Numbers of a column.
        columns: Of a window.
        left: Columns at the left end that are computed anew: padding reaches into them.
        right: Columns at the right end that are computed anew: padding reaches into them, or they are of new samples.
        moved: Columns that a hop moves a column to the left.
        head: First samples of a window that a step reads.
        tail: Last samples of a window that a step reads.
        rests_on: First sample that a window's state rests on, and the one after the last.
    """

    length: int
    hop: int
    features: int
    columns: int
    left: int
    right: int
    moved: int
    head: int
    tail: int
    rests_on: tuple[int, int]

    @property
    def carried(self) -> int:
        """How many columns the state holds."""
        return self.columns - self.left - self.right

    @property
    def state(self) -> tuple[int, ...]:
        """Shape of the state: as LiteRT and ExecuTorch have it with the fewest transpositions."""
        return (1, self.features, 1, self.carried)

    @property
    def kept(self) -> tuple[int, int]:
        """Which columns of a window are its state: the first one, and the one after the last."""
        first = self.left + self.moved
        return first, first + self.carried


def plan(layers: Sequence[tuple[int, int, int]], features: int, length: int, hop: int) -> StepPlan | None:
    """The plan of an encoder's step; None where a step would read no less than the window.

    Args:
        layers: Kernel, stride and padding (on both sides) of each convolution.
        features: Channels of the last layer.
        length: Samples of a window.
        hop: Samples from one window to the next; a whole multiple of all strides together.
    """
    sizes = [length]
    for kernel, stride, padding in layers:
        sizes.append((sizes[-1] + 2 * padding - kernel) // stride + 1)
    columns = sizes[-1]
    # From the last layer down to the samples: column c needs the values from c * step - before, span of them.
    step, before, span = 1, 0, 1
    first, last = 0, columns - 1  # columns that no padding reaches into
    for size, (kernel, stride, padding) in zip(reversed(sizes[:-1]), reversed(layers), strict=True):
        before, span = before * stride + padding, (span - 1) * stride + kernel
        step *= stride
        first, last = max(first, -(-before // step)), min(last, (size - span + before) // step)
    moved = hop // step
    carried = last - moved - first + 1
    if carried < 1:
        return None
    right = columns - first - carried
    oldest, newest = (first + moved) * step - before, last * step - before + span
    # Read is what the columns at the ends need, and what the state does not rest on, so that every sample of a window
    # is either read or known to be the same; on the grid of the columns.
    head = -(-max((first - 1) * step - before + span, oldest - hop) // step) * step if first else 0
    start = min((columns - right) * step - before, newest - hop) // step * step
    if head >= start:
        return None
    return StepPlan(length, hop, features, columns, first, right, moved, head, length - start, (oldest, newest))


def plan_of(encoder: nn.Module, modality: str, length: int, hop: float) -> StepPlan | None:
    """The plan of an encoder's step; None where a step would read no less than the window.

    Args:
        encoder: Without batch normalisation.
        modality: Its name, for messages.
        length: Samples of a window.
        hop: Samples from one window to the next, as the recipe has them.

    Raises:
        ExportError: The encoder is of another kind, or the hop does not fit its strides.
    """
    if not isinstance(encoder, ConvEncoder):
        raise ExportError(
            f"the encoder of '{modality}' cannot be incremental: it is {type(encoder).__name__}, and only those of "
            'kind = "conv" have columns that hold a hop later; leave out --incremental and [export] incremental'
        )
    convolutions = [layer for layer in encoder.layers if isinstance(layer, nn.Conv2d)]
    layers = [(int(c.kernel_size[1]), int(c.stride[1]), int(c.padding[1])) for c in convolutions]
    step = 1
    for _, stride, _ in layers:
        step *= stride
    whole = round(hop)
    if abs(hop - whole) > HOP_SLACK or whole < 1 or whole % step:
        raise ExportError(
            f"the encoder of '{modality}' cannot be incremental: its strides make one column of {step} samples, and "
            f"[data] hop_s is {hop:g} samples, no whole multiple of that; choose another hop_s, or leave out "
            "--incremental and [export] incremental"
        )
    return plan(layers, convolutions[-1].out_channels, length, whole)


def plans(encoders: nn.ModuleDict, modalities: Sequence[Modality], window: WindowSpec) -> dict[str, StepPlan]:
    """Modality name to what its encoder can carry, for those whose windows are long enough.

    Raises:
        ExportError: An encoder is of another kind, the hop does not fit its strides, or no window is long enough.
    """
    steps = {}
    for modality in modalities:
        length, hop = window.samples(modality), window.hop_s * modality.rate_hz
        made = plan_of(encoders[modality.name], modality.name, length, hop)
        if made is not None:
            steps[modality.name] = made
    if not steps:
        raise ExportError(
            f"no encoder can be incremental: of windows of {window.length_s:g} s every {window.hop_s:g} s nothing is "
            "left to carry; leave out --incremental and [export] incremental"
        )
    return steps


class _Columns(nn.Module):
    """The layers of an encoder, its parameters under their own names, with the columns in between at hand."""

    def __init__(self, encoder: ConvEncoder, plan: StepPlan) -> None:
        super().__init__()
        self.layers, self.pool, self.token = encoder.layers, encoder.pool, encoder.token
        self.flagged = encoder.flagged
        self.plan = plan

    def outputs(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Token (B, token_dim) and state (B, features, 1, carried) of a window's columns (B, features, 1, columns)."""
        token: Tensor = self.token(self.pool(columns).flatten(1))
        first, end = self.plan.kept
        return (F.pad(token, (0, 1), value=1.0) if self.flagged else token), columns[..., first:end]


class Windowed(_Columns):
    """An encoder that also gives the state to go on from."""

    def forward(self, window: Tensor) -> tuple[Tensor, Tensor]:
        """Token (B, token_dim) and state (B, features, 1, carried) of windows (B, channels, length)."""
        return self.outputs(self.layers(window.unsqueeze(2)))


class Step(_Columns):
    """An encoder of the next window."""

    def forward(self, window: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Token (B, token_dim) and next state (B, features, 1, carried).

        Args:
            window: (B, channels, head + tail) first and last samples of the window, joined.
            state: (B, features, 1, carried) of the window before.
        """
        anew = self.layers(window.unsqueeze(2))
        right = anew[..., anew.shape[3] - self.plan.right :]
        parts = [anew[..., : self.plan.left], state, right] if self.plan.left else [state, right]
        return self.outputs(torch.cat(parts, dim=3))


def windowed(part: Part, plan: StepPlan, signature: Signature) -> Part:
    """An encoder's part, with the state to go on from.

    Args:
        part: The trained encoder.
        plan: Of its step.
        signature: Of the program to make.

    Raises:
        ExportError: The part is of a precision whose steps would not give the windows' tokens.
    """
    return _incremental(part, Windowed, plan, signature)


def step(part: Part, plan: StepPlan, signature: Signature) -> Part:
    """The part of an encoder's step program; arguments and errors as for :func:`windowed`."""
    return _incremental(part, Step, plan, signature)


def _incremental(part: Part, kind: type[Windowed | Step], plan: StepPlan, signature: Signature) -> Part:
    if part.precision == "dynamic":
        raise ExportError(
            "dynamic int8 rounds by the range of each call, so the few samples of a step would give another token than "
            "the window; for incremental encoders take int8, fp16 or fp32"
        )
    assert isinstance(part.module, ConvEncoder)  # as plan_of has checked
    module = kind(part.module, plan)
    prepared = None
    if part.prepared is not None:
        prepared = with_ranges_of(prepare(module, *signature.examples(), is_incremental=True), part.prepared)
    return Part(module, signature, part.precision, prepared)
