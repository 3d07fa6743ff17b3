"""EDF+ files (https://www.edfplus.info/specs/edfplus.html), read and written with edfio.

A signal's label is its type and where it was measured (``EEG Fpz-Cz``): the type is the modality, the rest the
channel. Signals of one type, unit and rate are one modality. An EDF+ file has neither gaps (but for its discontinuous
kind, which is read and never written) nor values that are not known: what an export has to fill in is held from the
nearest sample, and an annotation says so, which the import takes out again.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Bool, Float32, Int64
from ..errors import DataError, MissingExtraError
from ..files import write_atomic
from ..modalities import Modality
from ..signals import BEGAN, Label, Recording, Stream
from ..windows import fill_gaps, resample
from .cell_table import mistake
from .timestamps import iso_ns
from .units import canonical

# Types that EDF+ gives signals (section "Standard texts" of its specification), where armlet's word is another.
_TYPES = {"ekg": "ecg", "resp": "rsp", "sao2": "spo2"}

# The longest label and unit that the header has room for.
_LABEL, _UNIT = 16, 8

# Our own annotation of samples that were not there.
_LACKS = "armlet: no "

# Lengths of data records in seconds; the first that holds a whole number of samples of every signal is used.
_RECORD_S = range(1, 61)


def _edfio() -> Any:
    try:
        import edfio
    except ImportError as error:
        raise MissingExtraError("EDF+ needs edfio, which is not installed: pip install 'armlet[recordings]'") from error
    return edfio


def is_ours(data: bytes) -> bool:
    """Whether a file that begins so is EDF or EDF+: its version is 0, in eight ASCII characters."""
    return data[:8] == b"0       "


def read(data: bytes, file: str, name: str, person: str) -> Recording:
    """A recording from an EDF or EDF+ file.

    Raises:
        DataError: The file is damaged or holds no signals.
        MissingExtraError: edfio is not installed.
    """
    edfio = _edfio()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers that are mended on the way
            edf = edfio.read_edf(io.BytesIO(data))
            signals = [
                (
                    annotation.label,
                    annotation.transducer_type,
                    annotation.physical_dimension,
                    float(annotation.sampling_frequency),
                    annotation.data,
                )
                for annotation in edf.signals
            ]
            annotations = [(signal.onset, signal.duration, signal.text) for signal in edf.annotations]
            began = _began(edf)
            record_s = float(edf.data_record_duration)
            truncated = edf.num_data_records < int(data[236:244])  # as the header was written
    except Exception as error:  # edfio raises whatever the bytes lead it to
        raise mistake(file, f"is a damaged EDF file: {type(error).__name__} {error}") from error
    if not signals or not all(len(values) for *_, values in signals):
        raise mistake(file, "holds no signals")
    onsets = _record_onsets(data, file) if data[192:197] == b"EDF+D" else None
    streams: dict[str, Stream] = {}
    for modality, columns in _modalities(signals):
        values = np.stack([signals[index][4] for index in columns], axis=1)
        unit, factor = canonical(re.sub(r"_\d+$", "", modality.name), modality.unit)
        times = np.rint(np.arange(len(values)) * (1e9 / modality.rate_hz)).astype(np.int64)
        if onsets is not None:
            each = round(record_s * modality.rate_hz)
            within = np.rint(np.arange(each) * (1e9 / modality.rate_hz)).astype(np.int64)
            times = (onsets[:, None] + within).ravel()[: len(values)]
            if len(times) < len(values) or times[0] < 0 or (np.diff(times) <= 0).any():
                raise mistake(file, "has data records that overlap or begin before 0: its times cannot be determined")
        kept = _not_lacking(modality.name, times, annotations)
        known = Modality(modality.name, modality.channels, unit, modality.rate_hz)
        with np.errstate(over="ignore"):
            scaled = (values[kept] * factor).astype(np.float32)
        if not np.isfinite(scaled).all():
            raise mistake(file, f"gives '{modality.name}' a physical range that no sensor has: its values are infinite")
        streams[modality.name] = Stream(known, times[kept], scaled)
    labels = [
        Label(round(onset * 1e9), round((onset + (duration or 0)) * 1e9) + (0 if duration else 1_000_000), text)
        for onset, duration, text in annotations
        if 0 <= onset < 4e9 and 0 <= (duration or 0) < 4e9 and text and not text.startswith(_LACKS)
    ]
    meta = {"source": file} | ({BEGAN: began} if began else {})
    labels.sort(key=lambda label: label.start_ns)
    return Recording(name, person, meta, streams, labels, truncated=truncated)


def _began(edf: Any) -> str:
    """When the recording began; EDF+ has the wall clock of the place, without its zone."""
    try:
        return str(edf.startdatetime.isoformat())
    except Exception:  # of an anonymised file, or one whose header has nonsense for a date
        return ""


def _modalities(signals: Sequence[tuple[str, str, str, float, Any]]) -> list[tuple[Modality, list[int]]]:
    """The modalities, and the indices of their signals."""
    groups: dict[tuple[str, str, float], list[tuple[int, str]]] = {}
    for index, (label, transducer, unit, rate, _) in enumerate(signals):
        ours = re.fullmatch(r"armlet (\S+) (.+)", transducer)
        kind, _, channel = (ours[1], " ", ours[2]) if ours else label.strip().partition(" ")
        name = kind if ours else _TYPES.get(kind.lower(), re.sub(r"\W+", "_", kind.lower()).strip("_") or "signal")
        groups.setdefault((name, unit.strip(), rate), []).append((index, channel.strip() or name))
    made: list[tuple[Modality, list[int]]] = []
    for (name, unit, rate), members in groups.items():
        same = sum(re.sub(r"_\d+$", "", modality.name) == name for modality, _ in made)
        channels = [channel for _, channel in members]
        unique = [
            channel if channels.count(channel) == 1 else f"{channel}_{at + 1}" for at, channel in enumerate(channels)
        ]
        made.append((
            Modality(f"{name}_{same + 1}" if same else name, tuple(unique), unit, rate),
            [index for index, _ in members],
        ))  # fmt: skip
    return made


def _not_lacking(name: str, times: Int64, annotations: Sequence[tuple[float, float | None, str]]) -> Bool:
    kept = np.ones(len(times), np.bool_)
    for onset, duration, text in annotations:
        if text == _LACKS + name and duration:
            # Half a microsecond of slack: annotations have decimal seconds.
            seconds = times / 1e9 + 5e-7
            kept &= ~((seconds >= onset) & (seconds < onset + duration))
    return kept


def _record_onsets(data: bytes, file: str) -> Int64:
    """Start of each data record of an EDF+D file in ns, from its first annotation (EDF+, 2.2.4)."""
    try:
        header, count = int(data[184:192]), int(data[252:256])
        place = 256 + 216 * count
        samples = [int(data[place + 8 * i : place + 8 * i + 8]) for i in range(count)]
        labels = [data[256 + 16 * i : 256 + 16 * i + 16].strip() for i in range(count)]
        first = labels.index(b"EDF Annotations")
        size, before = 2 * sum(samples), 2 * sum(samples[:first])
        records = range(header, len(data) - size + 1, size)
        seconds = [float(data[at + before :].split(b"\x14", 1)[0]) for at in records]
        return np.rint(np.array(seconds) * 1e9).astype(np.int64)
    except (ValueError, OverflowError) as error:
        raise mistake(file, f"is a damaged EDF+D file: {error}") from error


# --- writing ----------------------------------------------------------------------------------------------------------


def write(path: Path, recording: Recording) -> None:
    """Write an EDF+ file with all streams, on the grids of their nominal rates.

    EDF+ keeps 16 bits: a value comes back to within a 65,536th of its signal's range.

    Args:
        path: Must not exist.
        recording: Its streams' times count from the first sample of any.

    Raises:
        DataError: There are no samples, a rate does not fit, or the file cannot be written.
        MissingExtraError: edfio is not installed.
    """
    edfio = _edfio()
    streams = [stream for stream in recording.streams.values() if len(stream.times_ns)]
    if not streams:
        raise DataError(f"the recording '{recording.name}' has no samples to export")
    rates = [stream.modality.rate_hz for stream in streams]
    record_s = next((s for s in _RECORD_S if all(abs(s * rate - round(s * rate)) < 1e-6 for rate in rates)), None)
    if record_s is None:
        rates_text = ", ".join(f"{stream.modality.name} at {stream.modality.rate_hz:g} Hz" for stream in streams)
        raise DataError(
            f"EDF+ needs a whole number of samples in some 1 to 60 s, and the rates are {rates_text}: export CSV"
        )
    end_s = max(int(stream.times_ns[-1]) / 1e9 + 1 / stream.modality.rate_hz for stream in streams)
    records = max(1, -int(-end_s // record_s))
    signals, annotations = [], []
    for stream in streams:
        modality = stream.modality
        grid = np.arange(round(records * record_s * modality.rate_hz)) / modality.rate_hz
        values, covered = _on_grid(stream, grid)
        for start, stop in _runs(~covered):
            onset = start / modality.rate_hz
            annotations.append(edfio.EdfAnnotation(onset, (stop - start) / modality.rate_hz, _LACKS + modality.name))
        for channel, column in zip(modality.channels, values.T, strict=True):
            signals.append(_signal(edfio, modality, channel, column))
    for label in recording.labels:
        annotations.append(edfio.EdfAnnotation(label.start_ns / 1e9, (label.end_ns - label.start_ns) / 1e9, label.name))
    began = iso_ns(recording.meta.get(BEGAN, ""))
    day = datetime.fromtimestamp(began // 10**9, timezone.utc) if began is not None else None
    buffer = io.BytesIO()
    try:
        edf = edfio.Edf(
            signals,
            patient=edfio.Patient(code=_word(recording.person)),
            recording=edfio.Recording(startdate=day.date() if day else None),
            starttime=day.time() if day else None,
            data_record_duration=record_s,
            annotations=annotations,
        )
        edf.write(buffer)
    except ValueError as error:  # such as a unit that is not ASCII
        raise DataError(f"the recording '{recording.name}' does not fit into EDF+: {error}") from error
    if path.exists():
        raise DataError(f"{path} exists already: choose another name for the export")
    try:
        write_atomic(path, buffer.getvalue())
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from error


def _signal(edfio: Any, modality: Modality, channel: str, values: Float32) -> Any:
    lowest, highest = float(values.min()), float(values.max())
    if lowest == highest:
        highest = lowest + 1.0
    unit = modality.unit.replace("µ", "u").replace("°", "deg")
    return edfio.EdfSignal(
        values.astype(np.float64),
        modality.rate_hz,
        label=_ascii(f"{modality.name} {channel}")[:_LABEL],
        transducer_type=_ascii(f"armlet {modality.name} {channel}")[:80],
        physical_dimension=_ascii(unit)[:_UNIT],
        physical_range=(lowest, highest),
    )


def _on_grid(stream: Stream, grid: Any) -> tuple[Float32, Bool]:
    finite = np.isfinite(stream.values).all(axis=1)
    times = stream.times_ns[finite] / 1e9
    values, covered = resample(times, stream.values[finite], grid, 1 / stream.modality.rate_hz)
    return fill_gaps(values, covered), covered


def _runs(flags: Bool) -> list[tuple[int, int]]:
    """First and one past the last index of each run of true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]])))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode()


def _word(text: str) -> str:
    return re.sub(r"\s+", "_", _ascii(text)) or "X"
