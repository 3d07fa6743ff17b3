"""Batches: the same windows from memory and from readers, shares of processes, and functions of many windows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from armlet_train.data import Corpus
from armlet_train.data.loader import Source, in_batches, steps_per_epoch
from tests.support.made_training import made_corpus

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return made_corpus()


def test_readers_give_what_memory_gives(corpus: Corpus) -> None:
    starts = corpus.draw(24, True, np.random.default_rng(0)).reshape(3, 8)
    torch.manual_seed(7)
    near = list(Source(corpus, CPU).batches(starts))
    state = torch.get_rng_state()
    torch.manual_seed(7)
    far = list(Source(dataclasses.replace(corpus, in_memory=False), CPU).batches(starts))
    assert torch.equal(torch.get_rng_state(), state)  # reading draws nothing from the generator that a checkpoint keeps
    assert len(near) == len(far) == 3
    for one, other, row in zip(near, far, starts, strict=True):
        for place, name in enumerate(("acc", "pulse")):
            there = one.present[:, place]
            torch.testing.assert_close(one.windows[name][there], other.windows[name][there], rtol=0, atol=0)
            np.testing.assert_array_equal(one.windows[name][there].numpy(), corpus.windows(row)[name][there.numpy()])
        assert torch.equal(one.present, other.present) and torch.equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.labels.numpy(), corpus.labels_of(row))
    assert not torch.cat([batch.present for batch in near])[:, 1].all()  # one person has no pulse
    assert near[0].windows["acc"].shape == (8, 3, 64) and near[0].windows["pulse"].shape == (8, 1, 41)


def test_an_epoch_has_a_step_however_large_the_batch(corpus: Corpus) -> None:
    windows = len(corpus.starts(True, every=corpus.stride))
    assert steps_per_epoch(corpus, 10, labelled=True) == windows // 10
    assert steps_per_epoch(corpus, 10 * windows, labelled=True) == 1


def test_function_of_many_windows_is_that_of_each() -> None:
    windows = {"acc": np.random.default_rng(1).standard_normal((1000, 3, 4)).astype(np.float32)}
    present = np.arange(1000)[:, None] % 2 == 0

    def total(part: dict[str, torch.Tensor], there: torch.Tensor) -> torch.Tensor:
        return (part["acc"].sum(dim=(1, 2)) * there[:, 0])[None]

    given = in_batches(total, windows, present, dim=1, batch=300)
    np.testing.assert_allclose(given[0], windows["acc"].sum(axis=(1, 2)) * present[:, 0], rtol=1e-4, atol=1e-5)
