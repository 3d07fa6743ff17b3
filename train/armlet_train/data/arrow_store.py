"""Prepared corpora: recordings brought onto the grid once, in memory-mapped Arrow files, read as windows need them.

Arrow's IPC format (pyarrow) was chosen among the kept formats because a record batch in it *is* the array in memory: a
window is read by copying its own rows out of the page cache, without a decoder or chunk between (zarr, Parquet) or a
row at a time (Hugging Face's datasets, which keep the same files). A store is a folder::

    store.json                  the data set, its modalities, and how recordings are shared out to shards
    shard-00012.MODALITY.arrow  one record batch a recording that has the modality: column "values", a list of as many
                                float32 as channels a sample
    shard-00012.json            the shard's recordings: people, splits, labels, gaps, moments, batches, sizes of files

A shard counts when its ``.json`` is there, which is written last. So preparation can be killed at any time and goes on
with the shards that are missing; they are made by processes of their own.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from armlet_runtime.arrays import Float32, Int64
from armlet_runtime.errors import DataError, MissingExtraError, UsageError
from armlet_runtime.files import write_atomic
from armlet_runtime.modalities import Modality
from armlet_runtime.signals import Label

from .datasets import DataSet, Entry
from .grid import Moments, Piece, on_grid

T = TypeVar("T")

VERSION = 1
INDEX = "store.json"
MOST_SHARDS = 256


class _Store(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``store.json``. ``digest``: of the recordings and modalities, so that no other data set goes on in it."""

    version: int
    name: str
    digest: str
    modalities: tuple[Modality, ...]
    labels: tuple[str, ...]
    shards: int


class _Block(msgspec.Struct, frozen=True):
    """One modality of one recording: its batch in the shard's file, its gaps and moments."""

    batch: int
    gaps: list[tuple[int, int]]
    moments: Moments


class _Kept(msgspec.Struct, frozen=True):
    """One recording of a shard; labels as (start_ns, end_ns, name)."""

    name: str
    person: str
    split: str
    duration_s: float
    labels: list[tuple[int, int, str]]
    blocks: dict[str, _Block]


class _Shard(msgspec.Struct, frozen=True):
    """``shard-N.json``; ``sizes``: bytes of each modality's file."""

    recordings: list[_Kept]
    sizes: dict[str, int]


def is_store(path: Path) -> bool:
    """Whether a folder is a prepared corpus, whole or begun."""
    return (path / INDEX).is_file()


def prepare(
    data_set: DataSet, entries: list[Entry], folder: Path, workers: int, advance: Callable[[int, int], None]
) -> None:
    """Prepare a data set; begun again in the same folder, it goes on with what is missing.

    Args:
        data_set: Description of the data set.
        entries: Its recordings.
        folder: The store.
        workers: Processes.
        advance: Called with shards done and shards in all.

    Raises:
        DataError: A recording cannot be read; the shards that were done stay.
        UsageError: The folder holds something else.
    """
    size = -(-len(entries) // MOST_SHARDS)
    parts = [entries[first : first + size] for first in range(0, len(entries), size)]
    begun = _Store(VERSION, data_set.name, _digest(data_set, entries), data_set.modalities, data_set.labels, len(parts))
    if is_store(folder):
        if _load(folder / INDEX, _Store) != begun:
            raise UsageError(f"{folder} was prepared from other data; give another folder, or delete it")
    elif folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty and holds no prepared data; give another folder")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / INDEX, msgspec.json.encode(begun))
    missing = [number for number in range(len(parts)) if not _shard_index(folder, number).exists()]
    advance(len(parts) - len(missing), len(parts))
    with ProcessPoolExecutor(workers) as pool:
        running = [
            pool.submit(_prepare_shard, folder, number, parts[number], data_set.modalities) for number in missing
        ]
        try:
            for done, future in enumerate(as_completed(running), 1):
                future.result()
                advance(len(parts) - len(missing) + done, len(parts))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def open_store(folder: Path) -> tuple[str, tuple[Modality, ...], tuple[str, ...]]:
    """Name, modalities and labels of a prepared data set.

    Raises:
        DataError: It is not whole, or of another version.
    """
    store = _load(folder / INDEX, _Store)
    if store.version != VERSION:
        raise DataError(f"{folder} was prepared by another version of armlet; prepare it again")
    lacking = sum(not _shard_index(folder, number).exists() for number in range(store.shards))
    if lacking:
        raise DataError(
            f"{folder} is not whole: {lacking} of {store.shards} shards are missing; "
            "start the same 'armlet data prepare' again"
        )
    return store.name, store.modalities, store.labels


def read_pieces(folder: Path, split: str, modalities: tuple[Modality, ...]) -> Iterator[Piece]:
    """The recordings of one split with those modalities, their signals mapped into memory.

    Raises:
        DataError: A file is damaged.
    """
    store = _load(folder / INDEX, _Store)
    for number in range(store.shards):
        shard = _load(_shard_index(folder, number), _Shard)
        kept = [recording for recording in shard.recordings if recording.split == split]
        wanted = [modality for modality in modalities if any(modality.name in recording.blocks for recording in kept)]
        files = {
            modality.name: _File(_shard_file(folder, number, modality.name), modality, shard.sizes[modality.name])
            for modality in wanted
        }
        for recording in kept:
            names = [modality.name for modality in wanted if modality.name in recording.blocks]
            if names:
                yield Piece(
                    recording.name,
                    recording.person,
                    recording.duration_s,
                    {name: files[name].arrays[recording.blocks[name].batch] for name in names},
                    {name: _gaps(recording.blocks[name].gaps) for name in names},
                    {name: recording.blocks[name].moments for name in names},
                    tuple(Label(*label) for label in recording.labels),
                    partial(_ahead, files, {name: recording.blocks[name].batch for name in names}),
                )


def _ahead(files: dict[str, _File], batches: dict[str, int], modality: str, first: int, last: int) -> None:
    files[modality].ahead(batches[modality], first, last)


def _digest(data_set: DataSet, entries: list[Entry]) -> str:
    listed = [data_set.modalities, data_set.labels, [(entry.name, entry.person, entry.split) for entry in entries]]
    return hashlib.sha256(msgspec.json.encode(listed)).hexdigest()


def _shard_index(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.json"


def _shard_file(folder: Path, number: int, modality: str) -> Path:
    return folder / f"shard-{number:05d}.{modality}.arrow"


def _load(path: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}; delete it and prepare again") from None


def _gaps(gaps: list[tuple[int, int]]) -> Int64:
    return np.array(gaps, np.int64).reshape(-1, 2)


def _prepare_shard(folder: Path, number: int, entries: list[Entry], modalities: tuple[Modality, ...]) -> None:
    """Write one shard's files, then its index. In a process of its own; one recording is in memory at a time."""
    pa, ipc = _arrow()
    writers: dict[str, Any] = {}
    batches = dict.fromkeys((modality.name for modality in modalities), 0)
    kept = []
    try:
        for entry in entries:
            piece = on_grid(entry.read(), modalities)
            if piece is None:
                continue
            blocks = {}
            for name, values in piece.signals.items():
                width = values.shape[1]
                kind = pa.list_(pa.float32(), width)
                if name not in writers:
                    schema = pa.schema([pa.field("values", kind)])
                    writers[name] = ipc.new_file(pa.OSFile(str(_shard_file(folder, number, name)), "wb"), schema)
                flat = pa.array(np.ascontiguousarray(values).reshape(-1), pa.float32())
                column = pa.FixedSizeListArray.from_arrays(flat, width)
                writers[name].write_batch(pa.record_batch([column], names=["values"]))
                blocks[name] = _Block(batches[name], piece.gaps[name].tolist(), piece.moments[name])
                batches[name] += 1
            labels = [(label.start_ns, label.end_ns, label.name) for label in piece.labels]
            kept.append(_Kept(piece.name, piece.person, entry.split, piece.duration_s, labels, blocks))
    finally:
        for writer in writers.values():
            writer.close()
    sizes = {}
    for name in writers:
        file = _shard_file(folder, number, name)
        with file.open("rb") as written:
            os.fsync(written.fileno())  # the index must not outlive a power cut that the samples do not
        sizes[name] = file.stat().st_size
    write_atomic(_shard_index(folder, number), msgspec.json.encode(_Shard(kept, sizes)))


class _File:
    """One shard's file of one modality, mapped into memory.

    Attributes:
        arrays: Its batches (n, channels); they lie in the file, which stays mapped as long as they are used.
    """

    def __init__(self, path: Path, modality: Modality, size: int) -> None:
        """Map it.

        Raises:
            DataError: It is damaged.
        """
        pa, ipc = _arrow()
        try:
            if path.stat().st_size != size:
                raise DataError(f"{path} has {path.stat().st_size} bytes and should have {size}; prepare it again")
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            reader = ipc.open_file(pa.py_buffer(self._map))
            columns = [reader.get_batch(number).column(0) for number in range(reader.num_record_batches)]
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(f"{path} cannot be read: {error}; delete its shard's .json and prepare again") from None
        # Windows lie anywhere: what the system would read around one of them is not wanted.
        self._map.madvise(mmap.MADV_RANDOM)
        width = len(modality.channels)
        self.arrays: list[Float32] = [
            column.values.to_numpy(zero_copy_only=True).reshape(-1, width) for column in columns
        ]
        self._begin = np.frombuffer(self._map, np.uint8).ctypes.data

    def ahead(self, batch: int, first: int, last: int) -> None:
        """Begin to read rows of a batch from the disk, and return."""
        array = self.arrays[batch]
        begin = array.ctypes.data - self._begin + first * array.strides[0]
        page = begin - begin % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, page, begin - page + (last - first) * array.strides[0])


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        from pyarrow import ipc
    except ImportError as error:
        raise MissingExtraError("prepared data need pyarrow: pip install 'armlet[train]'") from error
    return pa, ipc
