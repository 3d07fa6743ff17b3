"""Batches: windows of a corpus on the device that trains, or scores.

The windows of a whole epoch are drawn at once, so a step waits for nothing: signals that fit lie on the device, which
cuts the windows itself; larger ones are read ahead by processes of their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from armlet_runtime.arrays import Float32, Int64

from .. import distributed
from .corpus import Corpus

READERS = 4
"""Most processes that read ahead from a corpus that is larger than memory."""


class Views(NamedTuple):
    """The input of a pretraining method: one or two views of each window, (B, channels, samples) a modality, and
    (B, modalities) which of them are there."""

    views: tuple[dict[str, Tensor], ...]
    present: Tensor


class Labelled(NamedTuple):
    """What fine-tuning takes: windows (B, channels, samples) a modality, (B, modalities) which of them are there, and
    (B,) indices of labels (:data:`armlet_train.data.corpus.NO_LABEL` for none)."""

    windows: dict[str, Tensor]
    present: Tensor
    labels: Tensor


class Source:
    """A corpus as a training sees it."""

    def __init__(self, corpus: Corpus, device: torch.device) -> None:
        """Put the signals on the device, if the corpus is in memory."""
        self.corpus = corpus
        self.device = device
        if corpus.in_memory:
            self._signals = {name: torch.from_numpy(signal).to(device) for name, signal in corpus.signals.items()}
            self._spans = {name: torch.arange(length, device=device) for name, length in corpus.lengths.items()}

    def batches(self, starts: Int64) -> Iterator[Labelled]:
        """One batch of raw windows, in their units, for each row of ``starts`` (batches, B)."""
        windows = self._cut(starts) if self.corpus.in_memory else self._read(starts)
        flat = starts.ravel()
        present = self._upload(self.corpus.present(flat).reshape(*starts.shape, -1))
        labels = self._upload(self.corpus.labels_of(flat).reshape(starts.shape))
        for number, batch in enumerate(windows):
            yield Labelled(batch, present[number], labels[number])

    def _cut(self, starts: Int64) -> Iterator[dict[str, Tensor]]:
        rows = {
            name: self._upload(first.reshape(starts.shape)) for name, first in self.corpus.rows(starts.ravel()).items()
        }
        for number in range(len(starts)):
            yield {
                name: signal[rows[name][number][:, None] + self._spans[name]].transpose(1, 2)
                for name, signal in self._signals.items()
            }

    def _read(self, starts: Int64) -> Iterator[dict[str, Tensor]]:
        loader = DataLoader(
            _Windows(self.corpus, starts),
            batch_size=None,  # an item is a batch already
            num_workers=min(READERS, max(1, (os.cpu_count() or 1) - 1), len(starts)),
            pin_memory=self.device.type == "cuda",
            # Of its own: the loader's seed must not be drawn from the generator that a checkpoint restores.
            generator=torch.Generator(),
        )
        for batch in loader:
            yield {name: window.to(self.device, non_blocking=True) for name, window in batch.items()}

    def _upload(self, values: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(values)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor


class _Windows(Dataset[dict[str, Tensor]]):
    """The windows of each row of ``starts``, read when asked for."""

    def __init__(self, corpus: Corpus, starts: Int64) -> None:
        self.corpus = corpus
        self.starts = starts

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {name: torch.from_numpy(window) for name, window in self.corpus.windows(self.starts[number]).items()}


def steps_per_epoch(corpus: Corpus, batch: int, labelled: bool) -> int:
    """Steps in which as many windows are seen as the people have at the stride of scoring; at least one.

    Args:
        corpus: Training people's recordings.
        batch: Windows a step.
        labelled: Only windows with one label.
    """
    return max(1, corpus.count(labelled, every=corpus.stride) // batch)


def draw_epoch(corpus: Corpus, steps: int, batch: int, labelled: bool, order: np.random.Generator) -> Int64:
    """(steps, B) first ticks of the windows of an epoch; B is this process's share of ``batch``."""
    drawn = corpus.draw(steps * batch, labelled, order).reshape(steps, batch)
    return np.ascontiguousarray(drawn[:, distributed.share(batch)])


def in_batches(
    function: Callable[[dict[str, Tensor], Tensor], Tensor],
    windows: Mapping[str, Float32],
    present: NDArray[np.bool_] | None = None,
    device: torch.device | None = None,
    dim: int = 0,
    batch: int = 512,
) -> Float32:
    """A function of windows that are too many for one call, without gradients.

    Args:
        function: Takes modality name to (B, channels, samples), and which are there, (B, modalities) bool.
        windows: Modality name to (n, channels, samples), in the model's order.
        present: (n, modalities) bool; all are there if not given.
        device: Where the function wants them; the CPU if not given.
        dim: Along which the results are put together.
        batch: Windows a call.
    """
    count = len(next(iter(windows.values())))
    if present is None:
        present = np.ones((count, len(windows)), np.bool_)
    parts = []
    with torch.no_grad():
        for at in range(0, count, batch):
            part = {name: torch.from_numpy(array[at : at + batch]).to(device) for name, array in windows.items()}
            parts.append(function(part, torch.from_numpy(present[at : at + batch]).to(device)).cpu())
    result: Float32 = torch.cat(parts, dim=dim).numpy()
    return result
