"""A prepared corpus: is memory flat, and is its reader faster than a training step?

Small by default. ``ARMLET_STORE_GIB=20 pytest benchmarks/training/test_store.py`` makes one of that size in pytest's
folder for temporary files (``--basetemp`` puts it on a disk that has the room), measures, and deletes it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from armlet_runtime.modalities import Modality
from armlet_runtime.signals import Label, Recording, Stream
from armlet_train.data import arrow_store, load_corpus
from armlet_train.data.datasets import DataSet, Entry
from armlet_train.engine import finetune, run_folder
from armlet_train.recipes import DataRecipe, find_recipe, load_recipe

GIB = float(os.environ.get("ARMLET_STORE_GIB", "0.1"))
SECONDS = 3600
RATE_HZ = 50.0
MODALITIES = tuple(Modality(name, ("x", "y", "z"), unit, RATE_HZ) for name, unit in (("acc", "g"), ("gyro", "rad/s")))
BYTES = round(SECONDS * RATE_HZ) * 2 * 3 * 4
"""Of one recording: two modalities of three float32."""
STEPS = 40


def hour(number: int, labels: tuple[str, ...]) -> Recording:
    """An hour of noise, cheap to make: a minute, repeated from another point."""
    count = round(SECONDS * RATE_HZ)
    times = np.rint(np.arange(count) / RATE_HZ * 1e9).astype(np.int64)
    minute = np.random.default_rng(number % 97).standard_normal((3000, 3)).astype(np.float32)
    values = np.resize(np.roll(minute, number, axis=0), (count, 3))
    streams = {modality.name: Stream(modality, times, values) for modality in MODALITIES}
    whole = Label(0, SECONDS * 1_000_000_000, labels[number % len(labels)])
    return Recording(f"hour-{number}", str(number % 40), {}, streams, [whole])


def own_bytes() -> int:
    """Memory of this process that is no file's: what a corpus larger than memory must not add to."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def forget(folder: Path) -> None:
    """Put a store's files out of the page cache: the reader starts cold, as from a corpus larger than memory."""
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.timeout(0)  # a corpus of 20 GiB takes its time
def test_reader_and_memory(tmp_path: Path, benchmark: BenchmarkFixture, goal: Callable[..., None]) -> None:
    torch.set_num_threads(1)
    recipe = load_recipe(find_recipe("hapt"))
    labels = recipe.data.labels
    count = max(4, round(GIB * 2**30 / BYTES))
    entries = [Entry(f"hour-{i}", str(i % 40), "train", partial(hour, i, labels)) for i in range(count)]
    data_set = DataSet("hours", "hours of noise", MODALITIES, labels, lambda _: entries)
    folder = tmp_path / "store"
    began = time.perf_counter()
    arrow_store.prepare(data_set, entries, folder, workers=2, advance=lambda done, total: None)
    prepared_s = time.perf_counter() - began
    size = sum(file.stat().st_size for file in folder.iterdir())

    forget(folder)
    data_recipe = DataRecipe(str(folder), ("acc", "gyro"), labels, 2.56, 1.28, 0.32)
    began = time.perf_counter()
    corpus = load_corpus(data_recipe, "train")
    rng = np.random.default_rng(0)
    batch = recipe.finetune.batch
    windows_in_all = corpus.count(labelled=False, every=corpus.stride)
    corpus.draw(batch, True, rng)
    open_s = time.perf_counter() - began

    model = run_folder.build_model(recipe, corpus.modalities)
    objective = finetune.Finetuning(model, recipe.finetune)
    optimiser = torch.optim.AdamW(model.parameters(), recipe.finetune.learning_rate)
    read_s, step_s = [], []
    before = own_bytes()
    for step in range(STEPS + 5):
        at = time.perf_counter()
        starts = corpus.draw(batch, True, rng)  # anywhere in the corpus
        windows, present, truth = corpus.windows(starts), corpus.present(starts), corpus.labels_of(starts)
        read = time.perf_counter()
        tensors = {name: torch.from_numpy(array) for name, array in windows.items()}
        loss = objective(tensors, torch.from_numpy(present), torch.from_numpy(truth))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        objective.after_step(step)
        if step >= 5:
            read_s.append(read - at)
            step_s.append(time.perf_counter() - read)
        if step == 5:
            before = own_bytes()
    after_steps = own_bytes()

    # Every sample once: all of the file passes through the page cache, and nothing of it stays in the process.
    last = corpus.starts(labelled=False, every=corpus.length)

    def read_all() -> tuple[float, int]:
        began, peak = time.perf_counter(), after_steps
        for first in range(0, len(last), 4096):
            corpus.windows(last[first : first + 4096])
            peak = max(peak, own_bytes())
        return time.perf_counter() - began, peak

    all_s, peak = benchmark.pedantic(read_all)  # type: ignore[no-untyped-call]
    listed = last.nbytes
    shutil.rmtree(folder)

    reader, trained = batch / float(np.median(read_s)), batch / float(np.median(step_s))
    corpus_size = f"{size / 2**30:.2f} GiB, {count} recordings, {windows_in_all} windows"
    goal("a prepared corpus: s to prepare it", prepared_s, None, corpus_size)
    goal("a prepared corpus: s to open it", open_s, None)
    slowest = batch / np.quantile(read_s, 0.9)
    rates = f"{reader:.0f} (slowest tenth {slowest:.0f}) and {trained:.0f} windows/s"
    goal("a prepared corpus: time to read a batch / a step with it", trained / reader, 0.5, rates)
    # The list of all windows' starts is the caller's.
    memory = (
        f"{before / 2**20:.0f} MiB before, {after_steps / 2**20:.0f} after {STEPS} steps, {peak / 2**20:.0f} at most "
        f"while every sample was read ({len(last) / all_s:.0f} windows/s)"
    )
    goal("a prepared corpus: own memory grows by MiB", (peak - before) / 2**20, 64 + 4 * listed / 2**20, memory)
