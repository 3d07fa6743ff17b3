"""Import and export: recordings from and to the files of other programs, one module a format.

An import gives streams on one common clock that begins with the first sample; ``meta["began"]`` has its date,
if the file has one. Values come in the units that models are trained in (:data:`armlet_runtime.wearables.UNITS`),
so that what is imported replays through a bundle with the same modalities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import DataError, ForeignRecordingError, UsageError
from ..signals import Label, Recording, read_recording
from . import edf, empatica, exported_folder, foreign_mcap, foreign_table, polar_logger
from .foreign_table import Columns

EXPORTS = ("csv", "parquet", "edf")
"""Formats of an export; the first two are folders of tables."""


def import_recording(
    source: Path, name: str, person: str = "", wanted: Sequence[Columns] = (), time: str | None = None
) -> Recording:
    """A recording from whatever ``source`` is, which its contents tell.

    Args:
        source: A file or a folder of Polar Sensor Logger's, an Empatica E4's folder or zip file, EDF or EDF+, an MCAP
            file, a CSV or Parquet file with times, or a folder that armlet exported.
        name: Of the recording.
        person: Who wore it.
        wanted: Of a CSV or Parquet file: which columns are what.
        time: Of a CSV or Parquet file: the column of times.

    Raises:
        DataError: Its format is none of these, or it has a mistake; the message names file, row and column.
        MissingExtraError: The format needs a package that is not installed.
        UsageError: ``wanted`` or ``time`` were given for a format that describes its own contents.
    """
    recording = _read(source, name, person, wanted, time)
    for key, stream in recording.streams.items():
        if not len(stream.times_ns):
            raise DataError(f"{source}: '{key}' has no samples")
    return recording


def _read(source: Path, name: str, person: str, wanted: Sequence[Columns], time: str | None) -> Recording:
    try:
        if source.is_dir():
            read = _read_folder(source, name, person)
        elif empatica.is_ours(source):
            read = empatica.read(empatica.files_of(source), name, person)
        else:
            read = None
        if read is not None:
            _no_columns(source, wanted, time)
            return read
        data = source.read_bytes()
    except OSError as error:
        raise DataError(f"{error.filename or source} cannot be read: {error.strerror}") from error
    return read_bytes(data, source, name, person, wanted, time)


def read_bytes(
    data: bytes, source: Path, name: str, person: str, wanted: Sequence[Columns] = (), time: str | None = None
) -> Recording:
    """A recording from the bytes of one file; arguments and errors as for :func:`import_recording`."""
    file = str(source)
    if data.startswith(b"\x89MCAP0"):
        _no_columns(source, wanted, time)
        try:
            recording = read_recording(source)
            return replace(recording, name=name, person=person or recording.person)
        except ForeignRecordingError:
            return foreign_mcap.read(data, file, name, person)
    if edf.is_ours(data):
        _no_columns(source, wanted, time)
        return edf.read(data, file, name, person)
    if data.startswith(b"PK\x03\x04"):
        raise DataError(
            f"{source} is a zip file, but holds no session of an Empatica E4 (ACC.csv and others), or was cut off"
        )
    if polar_logger.is_ours(data):
        _no_columns(source, wanted, time)
        return polar_logger.read([(file, data)], name, person)
    return foreign_table.read(data, file, name, person, wanted, time)


def _no_columns(source: Path, wanted: Sequence[Columns], time: str | None) -> None:
    if wanted or time is not None:
        raise UsageError(f"{source} describes its own columns: leave out --stream and --time")


def _read_folder(folder: Path, name: str, person: str) -> Recording:
    if (folder / exported_folder.ABOUT).is_file():
        recording = exported_folder.read(folder)
        return replace(recording, name=name, person=person or recording.person)
    if empatica.is_ours(folder):
        return empatica.read(empatica.files_of(folder), name, person)
    texts = [file for file in sorted(folder.iterdir()) if file.suffix == ".txt" and file.is_file()]
    ours = [(str(file), data) for file in texts if polar_logger.is_ours(data := file.read_bytes())]
    if ours:
        return polar_logger.read(ours, name, person)
    raise DataError(
        f"{folder} is no folder that armlet can import: no session of an Empatica E4 (ACC.csv and others), no text "
        f"files of Polar Sensor Logger, and no {exported_folder.ABOUT} of an export"
    )


def export_recording(recording: Recording, out: Path, kind: str) -> list[Path]:
    """Write a recording for other programs; the files written. Their times count from the first sample.

    Args:
        recording: With streams; see :func:`armlet_runtime.signals.conversion.with_streams` for one that has packets
            only.
        out: A new folder for ``csv`` and ``parquet``, a new file for ``edf``.
        kind: One of :data:`EXPORTS`.

    Raises:
        DataError: It has no samples, ``out`` exists, or cannot be written.
        MissingExtraError: The format needs a package that is not installed.
    """
    firsts = [int(stream.times_ns[0]) for stream in recording.streams.values() if len(stream.times_ns)]
    if not firsts:
        raise DataError(f"the recording '{recording.name}' has no samples to export")
    began = min(firsts)
    since = replace(
        recording,
        streams={key: replace(stream, times_ns=stream.times_ns - began) for key, stream in recording.streams.items()},
        labels=[
            Label(max(label.start_ns - began, 0), label.end_ns - began, label.name)
            for label in recording.labels
            if label.end_ns > began
        ],
        packets=[],
    )
    if kind == "edf":
        edf.write(out, since)
        return [out]
    return exported_folder.write(out, since, f".{kind}")
