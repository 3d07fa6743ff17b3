"""What people bring and take away: every format read from a file made as its writer makes it, mistakes, round trips."""

from __future__ import annotations

import io
import json
import math
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armlet_runtime.cli import main
from armlet_runtime.errors import ArmletError, DataError, UsageError
from armlet_runtime.formats import edf, empatica, foreign_mcap
from armlet_runtime.formats.cell_table import PIECE, Cells
from armlet_runtime.formats.exported_folder import read as read_folder
from armlet_runtime.formats.foreign_table import parse_stream
from armlet_runtime.formats.foreign_table import read as read_samples
from armlet_runtime.formats.polar_logger import read as read_polar
from armlet_runtime.formats.recordings import EXPORTS, export_recording, import_recording
from armlet_runtime.formats.timestamps import iso_ns, iso_text
from armlet_runtime.formats.units import split_unit
from armlet_runtime.modalities import Modality
from armlet_runtime.signals.recording import Label, Recording, Stream
from armlet_runtime.signals.recording_reader import read_recording
from armlet_runtime.signals.recording_writer import write_recording
from armlet_runtime.wearables import UNITS
from tests.support.small_bundle import SmallBundle


def at(milliseconds: float) -> str:
    """A time of the phone, so long after 14:10:15; a packet is not early."""
    whole = math.ceil(milliseconds)
    return f"2026-04-24T14:10:{15 + whole // 1000:02d}.{whole % 1000:03d}"


# The first two seconds of a session as the app writes it; the clock of the sensor was never set.
SENSOR = 599616050941733632
POLAR = {
    "ECG": "Phone timestamp;sensor timestamp [ns];timestamp [ms];ecg [uV]\n"
    + "".join(f"{at(270 + n * 7.692307)};{SENSOR + n * 7692307};{n * 7.692307:.2f};{n - 5}\n" for n in range(260)),
    "ACC": "Phone timestamp;sensor timestamp [ns];X [mg];Y [mg];Z [mg]\n"
    + "".join(f"{at(300 + n * 20)};{SENSOR + n * 20_000_000};-953;{n};425\n" for n in range(100)),
    "HR": "Phone timestamp;HR [bpm];HRV [ms];Breathing interval [rpm];\n"
    "2026-04-24T14:10:16.752;64;42.5;;\n2026-04-24T14:10:17.752;65;;;\n",
    "RR": "Phone timestamp;RR-interval [ms]\n"
    "2026-04-24T14:10:16.752;937\n2026-04-24T14:10:17.752;400\n2026-04-24T14:10:17.752;410\n",
}
MARKER = (
    "Phone timestamp;Marker start/stop\n2026-04-24T14:10:16.300;MARKER_START\n2026-04-24T14:10:16.800;MARKER_STOP\n"
)

E4 = {
    "ACC.csv": "1644226773.00, 1644226773.00, 1644226773.00\n32.000000, 32.000000, 32.000000\n" + "-5,38,50\n" * 64,
    "BVP.csv": "1644226773.000000\n64.000000\n" + "".join(f"{n / 7:.2f}\n" for n in range(128)),
    "EDA.csv": "1644226773.000000\n4.000000\n0.000000\n0.130660\n0.169000\n",
    "TEMP.csv": "1644226773.000000\n4.000000\n28.53\n28.53\n",
    "HR.csv": "1644226783.000000\n1.000000\n71.00\n72.50\n",
    "IBI.csv": "1644226773.000000, IBI\n10.250000,0.812500\n11.109375,0.859375\n",
    "tags.csv": "1644226775.50\n",
}


def bytes_of(files: dict[str, str]) -> list[tuple[str, bytes]]:
    return [(f"Polar_H10_12345678_20260424_141011_{key}.txt", text.encode()) for key, text in files.items()]


def e4(changes: dict[str, str] | None = None) -> dict[str, bytes]:
    return {key: text.encode() for key, text in {**E4, **(changes or {})}.items()}


def some(rng: np.random.Generator, gaps: bool = False) -> Recording:
    """Two modalities that begin at different times, with a value that is not known and, if wanted, a gap."""
    acc_times = np.arange(500, dtype=np.int64) * 20_000_000
    if gaps:
        acc_times = np.delete(acc_times, slice(100, 160))
    acc = rng.normal(size=(len(acc_times), 3)).astype(np.float32)
    hr = rng.uniform(60, 90, (9, 1)).astype(np.float32)
    hr[3] = np.nan
    return Recording(
        "walk",
        "anna",
        {"began": "2026-04-24T14:10:15.270000Z"},
        {
            "acc": Stream(Modality("acc", ("x", "y", "z"), "g", 50.0), acc_times, acc),
            "hr": Stream(Modality("hr", ("bpm",), "bpm", 1.0), 10**9 * np.arange(1, 10, dtype=np.int64), hr),
        },
        [Label(10**9, 3 * 10**9, "walking"), Label(3 * 10**9, 4_500_000_000, "sitting, then")],
    )


def same(one: Recording, other: Recording) -> None:
    assert (one.name, one.person, one.meta, one.labels) == (other.name, other.person, other.meta, other.labels)
    assert list(one.streams) == list(other.streams)
    for key, stream in one.streams.items():
        assert other.streams[key].modality == stream.modality
        np.testing.assert_array_equal(other.streams[key].times_ns, stream.times_ns)
        np.testing.assert_array_equal(other.streams[key].values, stream.values)


# --- what people bring ------------------------------------------------------------------------------------------------


def test_polar_sensor_logger() -> None:
    recording = read_polar([*bytes_of(POLAR), ("MARKER_20260424_141011.txt", MARKER.encode())], "chest", "anna")
    ecg, acc, hr, rr = (recording.streams[name] for name in ("ecg", "acc", "hr", "rr"))
    assert ecg.modality == Modality("ecg", ("ecg",), "mV", 130.0)
    assert acc.modality == Modality("acc", ("x", "y", "z"), "g", 50.0)
    assert ecg.values[:3, 0] == pytest.approx([-0.005, -0.004, -0.003])
    assert acc.values[7] == pytest.approx([-0.953, 0.007, 0.425])
    assert hr.values[:, 0].tolist() == [64, 65] and rr.values[:, 0] == pytest.approx([0.937, 0.4, 0.41])
    # One clock: the first sample of both signals is of the same moment, which is as early as the packets allow.
    assert ecg.times_ns[0] == acc.times_ns[0] == 0
    assert np.diff(ecg.times_ns).tolist() == [7692307] * 259
    assert recording.meta["began"] == "2026-04-24T14:10:15.270000"
    # Two beats in one packet: the first one ended when the second one's interval began.
    assert np.diff(rr.times_ns).tolist() == [590_000_000, 410_000_000]
    assert recording.labels == [Label(1_030_000_000, 1_530_000_000, "marker")]


@pytest.mark.parametrize(
    ("header", "row", "name", "channels", "values"),
    [
        ("sensor timestamp [ns];X [dps];Y [dps];Z [dps]", "{};180;0;-90", "gyro", "xyz", [np.pi, 0, -np.pi / 2]),
        ("sensor timestamp [ns];X [G];Y [G];Z [G]", "{};0.5;0;-0.25", "mag", "xyz", [50, 0, -25]),
        ("sensor timestamp [ns];channel 0;channel 1;channel 2;ambient", "{};1;2;3;4", "ppg", None, [1, 2, 3, 4]),
        (
            "PP-interval [ms];error estimate [ms];blocker;contact;contact;hr [bpm]",
            "812;10;0;1;1;74",
            "rr",
            None,
            [0.812],
        ),
    ],
)
def test_other_signals_of_polar_sensor_logger(
    header: str, row: str, name: str, channels: str | None, values: list[float]
) -> None:
    when = "Phone Data RX timestamp" if name == "rr" else "Phone timestamp"
    rows = "".join(f"{at(n * 1000)};{row.format(SENSOR + n * 10**9)}\n" for n in range(3))
    recording = read_polar([("a.txt", f"{when};{header}\n{rows}".encode())], "arm", "")
    ((key, stream),) = recording.streams.items()
    assert key == name and stream.modality.unit == UNITS[name] and stream.times_ns.tolist() == [0, 10**9, 2 * 10**9]
    assert channels is None or stream.modality.channels == tuple(channels)
    assert stream.values[1] == pytest.approx(values)


@pytest.mark.parametrize(
    ("key", "old", "new", "says"),
    [
        ("ACC", ";7;425", ";seven;425", "row 9, column Y [mg]: 'seven' is not a number"),
        ("ACC", ";7;425", ";7", "row 9: has 4 cells; the header has 5"),
        ("ECG", "2026-04-24T14:10:15.286", "yesterday", "row 4, column Phone timestamp: 'yesterday' is no time such"),
        (
            "ECG",
            "599616050957118246",
            "599616050941733632",
            "row 4, column sensor timestamp [ns]: '5996160509",
        ),
        ("HR", "HR [bpm]", "Pulse", "row 1: holds none of the signals"),
        ("ACC", ";7;425", ";7e300;425", "row 9, column Y [mg]: is larger than a float32 can be"),
    ],
)
def test_a_mistake_in_a_polar_file_is_named(key: str, old: str, new: str, says: str) -> None:
    assert old in POLAR[key]
    with pytest.raises(DataError, match=rf"_{key}\.txt, ") as refused:
        read_polar(bytes_of({**POLAR, key: POLAR[key].replace(old, new)}), "chest", "")
    assert says in str(refused.value)


def test_two_beats_that_arrive_together_are_kept() -> None:
    times = ["2026-04-24T14:10:15.100", "2026-04-24T14:10:16.100", "2026-04-24T14:10:16.090", "2026-04-24T14:10:18.100"]

    def read(times: list[str]) -> Recording:
        rows = "".join(f"{time};{70 + n};;;\n" for n, time in enumerate(times))
        head = "Phone timestamp;HR [bpm];HRV [ms];Breathing interval [rpm];\n"
        return read_polar([("HR.txt", (head + rows).encode())], "chest", "")

    assert read(times).streams["hr"].times_ns.tolist() == [0, 10**9, 1_001_000_000, 3 * 10**9]
    with pytest.raises(DataError, match=r"HR\.txt, row 5, .* clock was set back"):
        read([*times[:3], "2026-04-24T13:10:17.100"])


def test_two_polar_wearables_are_not_mixed() -> None:
    twice = [*bytes_of(POLAR), ("Polar_H10_87654321_20260424_141011_ACC.txt", POLAR["ACC"].encode())]
    with pytest.raises(DataError, match="holds 'acc', and so does Polar_H10_12345678"):
        read_polar(twice, "chest", "")


@pytest.mark.parametrize("zipped", [False, True])
def test_empatica_e4(zipped: bool, tmp_path: Path) -> None:
    source = tmp_path / ("1644226773_A00204.zip" if zipped else "session")
    if zipped:
        with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in E4.items():
                archive.writestr(name, text)
    else:
        source.mkdir()
        for name, text in E4.items():
            (source / name).write_text(text)
    recording = import_recording(source, "wrist", "ben")
    acc, hr, rr = (recording.streams[name] for name in ("acc", "hr", "rr"))
    assert acc.modality == Modality("acc", ("x", "y", "z"), "g", 32.0) and len(acc.times_ns) == 64
    assert acc.values[0] == pytest.approx([-5 / 64, 38 / 64, 50 / 64]) and acc.times_ns[32] == 10**9
    assert recording.streams["ppg"].modality.rate_hz == 64.0 and recording.streams["eda"].modality.unit == "uS"
    assert hr.times_ns.tolist() == [10 * 10**9, 11 * 10**9]
    assert rr.times_ns.tolist() == [10_250_000_000, 11_109_375_000] and rr.values[0, 0] == 0.8125
    assert recording.labels == [Label(2_500_000_000, 2_501_000_000, "tag")]
    assert recording.meta == {"source": "Empatica E4", "began": "2022-02-07T09:39:33Z"} and recording.person == "ben"


IMPORT_AND_MEASURE = """
import sys
from pathlib import Path
from armlet_runtime.formats import import_recording
from armlet_runtime.signals import write_recording
write_recording(Path(sys.argv[2]), import_recording(Path(sys.argv[1]), "night"))
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


def test_hours_of_an_e4_need_little_memory(tmp_path: Path) -> None:
    """Three hours of acceleration, 3 MB; as strings of their own the cells would take some 100 MB."""
    (tmp_path / "night").mkdir()
    head = "1644226773.00, 1644226773.00, 1644226773.00\n32.000000, 32.000000, 32.000000\n"
    rows = "".join(f"{n % 127 - 63},{n % 31},{n % 64}\n" for n in range(4096))
    (tmp_path / "night" / "ACC.csv").write_text(head + rows * (3 * 3600 * 32 // 4096))
    command = [sys.executable, "-c", IMPORT_AND_MEASURE, str(tmp_path / "night"), str(tmp_path / "night.mcap")]
    measured = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(measured.stdout) < 120_000, "KiB, with the interpreter and NumPy"


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("EDA.csv", "1644226773.0\n4.0\n0.1\n\n0,3\n", "EDA.csv, row 5: has 2 cells; the first row has 1"),
        ("EDA.csv", "1644226773.0\n4.0\n0.1\nlow\n", "EDA.csv, row 4, column 1: 'low' is not a number"),
        ("BVP.csv", "1644226773.0\n0\n1\n", "BVP.csv, row 2, column 1: a rate is from"),
        ("ACC.csv", "-5\n32.0\n1\n", "ACC.csv: needs a row with the time"),
        ("TEMP.csv", "-5\n4.0\n1\n", "TEMP.csv, row 1, column 1: -5 is no Unix time"),
        ("IBI.csv", "1644226773.0, IBI\n10,0.8\n9,0.8\n", "IBI.csv, row 3, column 1: 9 s is not later"),
        ("tags.csv", "now\n", "tags.csv, row 1, column 1: 'now' is not a number"),
    ],
)
def test_a_mistake_in_an_e4_session_is_named(file: str, text: str, says: str) -> None:
    with pytest.raises(DataError) as refused:
        empatica.read(e4({file: text}), "wrist", "")
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("header", "first", "second", "streams", "began"),
    [
        ("time_s,acc_x,acc_y,acc_z", "0.00", "0.02", {"acc": ("x", "y", "z")}, None),
        ("time [ms];ax [m/s2];ay [m/s2];az [m/s2]", "0", "20", {"acc": ("x", "y", "z")}, None),
        (
            "Timestamp,Gyroscope.x,Gyroscope.y,Gyroscope.z",
            "1700000000000",
            "1700000000020",
            {"gyro": ("x", "y", "z")},
            1,
        ),
        ("datetime,heart_rate,eda [uS],left", "2023-11-14T22:13:20Z", "2023-11-14 22:13:20.02+00:00", None, 1),
        ("t (us),EEG TP9 [uV],EEG AF7 [uV],EEG AF8 [uV]", "5", "20005", {"eeg": ("TP9", "AF7", "AF8")}, None),
    ],
)
def test_csv_whose_names_tell_what_it_holds(
    header: str, first: str, second: str, streams: dict[str, tuple[str, ...]] | None, began: int | None
) -> None:
    cut = ";" if ";" in header else ","
    text = f"{header}\n{first}{cut}0.1{cut}0.2{cut}0.98\n\n{second}{cut}1.5{cut}{cut}nan\n"
    recording = read_samples(text.encode("utf-8-sig"), "walk.csv", "walk", "anna")
    found = {name: stream.modality.channels for name, stream in recording.streams.items()}
    if streams is not None:
        assert found == streams
        ((name, stream),) = recording.streams.items()
        assert stream.modality.unit == UNITS[name] and stream.modality.rate_hz == 50.0
        assert np.diff(stream.times_ns).tolist() == [20_000_000] and np.isnan(stream.values[1, 2])
    else:
        assert found == {"hr": ("bpm",), "eda": ("eda",), "left": ("left",)}
        assert len(recording.streams["eda"].times_ns) == 1  # a row without a value is no sample
    assert recording.meta.get("began") == ("2023-11-14T22:13:20Z" if began else None)
    assert ("assumed_units" in recording.meta) == ("[" not in header or "heart_rate" in header)


def test_units_come_as_models_are_trained_in() -> None:
    text = b"time_s,acc_x [m/s2],gyro_z [deg/s],ecg [uV],mag_x [gauss],temp [C]\n0,9.80665,180,1000,1,36.6\n"
    recording = read_samples(text, "walk.csv", "walk", "")
    values = {name: (float(one.values[0, 0]), one.modality.unit) for name, one in recording.streams.items()}
    assert values["acc"] == (1.0, "g") and values["gyro"][0] == pytest.approx(np.pi)
    assert values["ecg"] == (1.0, "mV") and values["mag"] == (100.0, "uT")
    assert values["temp"] == (float(np.float32(36.6)), "degC") and "assumed_units" not in recording.meta


def test_csv_as_a_phone_logs_it() -> None:
    # Named after its sensor, the time twice, and the axes in an order of their own.
    text = b"time,seconds_elapsed,z,y,x\n1700000000000000000,0.0,0.9,0.2,0.1\n1700000000020000000,0.02,0.8,0.5,0.4\n"
    recording = read_samples(text, "Accelerometer.csv", "walk", "")
    ((name, stream),) = recording.streams.items()
    assert name == "acc" and stream.modality == Modality("acc", ("x", "y", "z"), "g", 50.0)
    assert (
        stream.values == pytest.approx(np.array([[0.1, 0.2, 0.9], [0.4, 0.5, 0.8]]))
        and recording.meta["assumed_units"] == "acc in g"
    )


def test_samples_that_a_phone_hands_over_in_bursts_get_their_own_times() -> None:
    """Taken every 10 ms and stamped when they are handed over: some together, none before it was taken."""
    rng = np.random.default_rng(1)
    taken = np.arange(3000) * 10.0 + 1_700_000_000_000
    taken[2000:] += 5000  # a gap is not a burst, and stays
    stamps = np.floor(np.maximum.accumulate(taken + rng.choice([0.0, 3.0, 60.0], 3000, p=[0.6, 0.38, 0.02]))).astype(
        int
    )
    assert (np.diff(stamps) == 0).sum() > 100
    rows = "".join(f"{stamp},{n},0,0,{n}\n" for n, stamp in enumerate(stamps))
    recording = read_samples(f"time,x_gyro,y_gyro,z_gyro,hr\n{rows}".encode(), "phone.csv", "walk", "")
    gyro = recording.streams["gyro"]
    assert gyro.modality.channels == ("x", "y", "z") and gyro.modality.rate_hz == 100.0
    assert gyro.values[:, 0].tolist() == list(range(3000)) and (np.diff(gyro.times_ns) > 0).all()
    error_ms = (gyro.times_ns - gyro.times_ns[0]) / 1e6 - (taken - taken[0])
    assert np.abs(error_ms - np.median(error_ms)).max() < 10 and np.percentile(np.abs(error_ms), 90) < 5
    assert (
        f"gyro: {(np.diff(stamps) == 0).sum()} of 3000 samples had the time of the sample before"
        in (recording.meta["rebuilt_times"])
    )


def test_two_modalities_that_take_turns_at_one_time_keep_it() -> None:
    rows = "".join(f"{n / 50},{n},\n{n / 50},,{n}\n" for n in range(100))
    recording = read_samples(f"time_s,gyro_x,temp\n{rows}".encode(), "walk.csv", "walk", "")
    assert "rebuilt_times" not in recording.meta
    for name in ("gyro", "temp"):
        assert recording.streams[name].times_ns.tolist() == [n * 20_000_000 for n in range(100)]


@pytest.mark.parametrize(("unit", "one_g"), [("1/64 g", 64), ("m/s2", 9.80665), ("mg", 1000)])
def test_acceleration_that_cannot_be_in_g_is_asked_about(unit: str, one_g: float) -> None:
    rows = "".join(f"{n / 50},0,{0.6 * one_g},{-0.8 * one_g}\n" for n in range(100))
    text = f"time_s,ax,ay,az\n{rows}".encode()
    with pytest.raises(DataError, match="does not tell the unit of 'acc'") as refused:
        read_samples(text, "walk.csv", "walk", "")
    assert f"in {unit} that would be 1 g" in str(refused.value)
    told = read_samples(text, "walk.csv", "walk", "", [parse_stream(f"acc[{unit}]=ax,ay,az")])
    assert told.streams["acc"].values[3] == pytest.approx([0, 0.6, -0.8], abs=1e-6) and "assumed_units" not in told.meta


def test_acceleration_in_g_needs_no_unit() -> None:
    rows = "".join(f"{n / 50},0,0.6,-0.81\n" for n in range(100))
    recording = read_samples(f"time_s,ax,ay,az\n{rows}".encode(), "walk.csv", "walk", "")
    assert recording.meta["assumed_units"] == "acc in g"


PUBLISHED = Path(os.environ["ARMLET_DATA"]) / "as-published" if "ARMLET_DATA" in os.environ else None


@pytest.mark.skipif(PUBLISHED is None, reason="ARMLET_DATA does not name a folder of published recordings")
def test_published_recordings_are_imported() -> None:
    assert PUBLISHED is not None
    wrist = import_recording(PUBLISHED / "stress-predict/Raw_data/S02", "s02").streams
    assert {name: len(one.times_ns) for name, one in wrist.items()} == {
        "acc": 114054, "ppg": 228173, "eda": 14262, "temp": 14264, "hr": 3555, "rr": 360
    }  # fmt: skip
    head = import_recording(PUBLISHED / "eegmat/Subject00_1.edf", "s00").streams
    assert head["eeg"].values.shape == (91000, 20) and head["ecg"].modality.unit == "mV"
    phone = PUBLISHED / "tug-phone-watch/DATA/s01/s01_01_sp.csv"
    columns = [parse_stream("acc[m/s2]=x_acc,y_acc,z_acc"), parse_stream("gyro[rad/s]=x_gyro,y_gyro,z_gyro")]
    with pytest.raises(DataError, match="does not tell the unit of 'acc'"):
        import_recording(phone, "s01", "", [parse_stream("acc=x_acc,y_acc,z_acc")])
    recording = import_recording(phone, "s01", "", columns)
    assert "acc: 108 of 1351 samples had the time of the sample before" in recording.meta["rebuilt_times"]
    acc = recording.streams["acc"]
    assert acc.modality.channels == ("x", "y", "z") and 0.9 < np.median(np.linalg.norm(acc.values, axis=1)) < 1.1


@pytest.mark.parametrize("cut", [";", "\t"])
def test_numbers_with_a_comma(cut: str) -> None:
    rows = [["Zeit [s]", "acc_x", "temp"], ["0,00", "-0,5", "36"], ["0,02", "1,5e-1", "36,5"], ["0,04", "", "37"]]
    text = "\r\n".join(cut.join(row) for row in rows).encode()
    recording = read_samples(text, "walk.csv", "walk", "", (), "Zeit [s]")
    assert recording.streams["acc"].values[:, 0] == pytest.approx([-0.5, 0.15])
    assert recording.streams["temp"].values[:, 0] == pytest.approx([36.0, 36.5, 37.0])
    assert recording.streams["temp"].times_ns.tolist() == [0, 20_000_000, 40_000_000]


def test_columns_can_be_said() -> None:
    text = b"clock,1,2,3,note\n5,1,2,3,a\n25,4,5,6,b\n"
    wanted = [parse_stream("acc[mg]=1,2,3")]
    recording = read_samples(text, "walk.csv", "walk", "", wanted, "clock [ms]")
    assert recording.streams["acc"].modality == Modality("acc", ("1", "2", "3"), "g", 50.0)
    assert recording.streams["acc"].values[1] == pytest.approx([0.004, 0.005, 0.006])
    with pytest.raises(UsageError, match="give MODALITY=COLUMN"):
        parse_stream("acc=1,,3")
    with pytest.raises(DataError, match="has no column '4'; there are clock"):
        read_samples(text, "walk.csv", "walk", "", [parse_stream("acc=4")], "clock [ms]")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "walk.csv: is empty"),
        ("time_s,acc_x\n", "walk.csv: has no rows of samples"),
        ("a,b\n1,2\n", "walk.csv, row 1: has no column of times (there are a, b); name it with --time"),
        ("time,acc_x\n1,2\n2,2\n", "walk.csv, column time: the unit of these times is unknown"),
        ("time_s,acc_x\n1,2\n1,2\n", "walk.csv, row 3, column time_s: '1' is not later"),
        ("time_s,acc_x\n1,2\nsoon,2\n", "walk.csv, row 3, column time_s: 'soon' is not a time"),
        ("time_s,acc_x\n1,2\n" + "9" * 400 + ",2\n", "walk.csv, row 3, column time_s: '9999"),
        ("time_s,acc_x\n1,2\n2,high\n", "walk.csv, row 3, column acc_x: 'high' is not a number"),
        ("time_s,acc_x\n1,2\n2,inf\n", "walk.csv, row 3, column acc_x: 'inf' is not a number"),
        ("time_s,acc_x\n1,2\n2,1e300\n", "walk.csv, row 3, column acc_x: is larger than a float32"),
        ("time_s,acc_x\n-1,2\n", "walk.csv, row 2, column time_s: times count from 0"),
        ("time_s,acc_x\n1,2,3\n", "walk.csv, row 2: has 3 cells; the header has 2"),
        ("time_s,acc_x\n1,2\n2", "walk.csv, row 3: has 1 cell; the header has 2: the file was cut off here"),
        (
            "date,acc_x\n2026-01-01T00:00:00Z,1\n2026-01-01T00:00:01,1\n",
            "'2026-01-01T00:00:01' names no time zone",
        ),
        ("date,acc_x\n2026-01-01T00:00:00,1\n2026-01-01T00:00:01Z,1\n", "names a time zone, unlike the first time"),
        ("time_s,x,y,z\n1,2,3,4\n", "walk.csv, row 1, column x: does not say what x is of; say it with --stream"),
        ("time_s,acc_x [g],acc_y [mg]\n1,2,3\n", "walk.csv, row 1: has 'acc' in 'g' and 'mg'; say it with --stream"),
        ("time_s,acc_x\n1,\n", "walk.csv: has no samples"),
        ("date,acc_x\n2026-01-01 00:00:00,1\n2026-02-30 00:00:00,1\n", "row 3, column date: '2026-02-30 00:00:00' is"),
    ],
)
def test_a_mistake_in_a_table_is_named(text: str, says: str) -> None:
    with pytest.raises(DataError) as refused:
        read_samples(text.encode(), "walk.csv", "walk", "")
    assert str(refused.value).startswith("walk.csv") and says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_text_that_is_none_names_its_row() -> None:
    with pytest.raises(DataError, match=r"walk\.csv, row 2: is not text in UTF-8"):
        read_samples(b"time_s,acc_x\n\xff,1\n", "walk.csv", "walk", "")


def written_edf(recording: Recording, path: Path) -> bytes:
    export_recording(recording, path, "edf")
    return path.read_bytes()


def test_edf_of_another_program(tmp_path: Path) -> None:
    import datetime

    import edfio

    rng = np.random.default_rng(3)
    path = tmp_path / "night.edf"
    edfio.Edf(
        [
            edfio.EdfSignal(rng.normal(size=1000), 100, label="EEG Fpz-Cz", physical_dimension="uV"),
            edfio.EdfSignal(rng.normal(size=1000), 100, label="EEG Pz-Oz", physical_dimension="uV"),
            edfio.EdfSignal(rng.normal(size=2000) * 1e3, 200, label="EKG", physical_dimension="uV"),
            edfio.EdfSignal(rng.normal(size=10), 1, label="Resp oro-nasal", physical_dimension=""),
        ],
        recording=edfio.Recording(startdate=datetime.date(2026, 4, 24)),
        starttime=datetime.time(23, 30, 1),
        data_record_duration=1,
        annotations=[edfio.EdfAnnotation(2, 3, "Sleep stage W"), edfio.EdfAnnotation(4, None, "Lights off")],
    ).write(path)
    recording = import_recording(path, "night", "cleo")
    eeg, ecg, rsp = (recording.streams[name] for name in ("eeg", "ecg", "rsp"))
    assert eeg.modality == Modality("eeg", ("Fpz-Cz", "Pz-Oz"), "uV", 100.0)
    assert ecg.modality == Modality("ecg", ("ecg",), "mV", 200.0) and np.abs(ecg.values).max() < 5
    assert rsp.modality.channels == ("oro-nasal",) and len(rsp.times_ns) == 10
    assert recording.meta["began"] == "2026-04-24T23:30:01"
    assert recording.labels == [
        Label(2 * 10**9, 5 * 10**9, "Sleep stage W"),
        Label(4 * 10**9, 4_001_000_000, "Lights off"),
    ]

    # A discontinuous file has the same signals, and gaps between its records: here two hours after the third.
    data = bytearray(path.read_bytes())
    data[192:197] = b"EDF+D"
    records = 10
    size = (len(data) - int(data[184:192])) // records
    for number in range(records):
        at = data.index(b"+", int(data[184:192]) + number * size + 2 * 401)
        old = bytes(data[at : data.index(b"\x14", at)])
        new = b"+%d" % (number + (7200 if number > 2 else 0))
        end = int(data[184:192]) + (number + 1) * size
        rest = bytes(data[at + len(old) : end])
        data[at:end] = (new + rest)[: end - at].ljust(end - at, b"\0")
    broken = edf.read(bytes(data), "night.edf", "night", "")
    assert np.diff(broken.streams["eeg"].times_ns).max() == 7_200_010_000_000
    assert broken.streams["eeg"].times_ns[299] == 2_990_000_000 and len(broken.streams["eeg"].times_ns) == 1000


def test_edf_that_was_cut_off_says_so(tmp_path: Path) -> None:
    written = written_edf(some(np.random.default_rng(1)), tmp_path / "night.edf")
    whole = edf.read(written, "night.edf", "night", "")
    cut = edf.read(written[: len(written) * 2 // 3], "night.edf", "night", "")
    assert not whole.truncated and cut.truncated
    assert 0 < len(cut.streams["acc"].times_ns) < len(whole.streams["acc"].times_ns)


def imu_mcap(messages: Mapping[int, Any]) -> bytes:
    """An MCAP file with one topic, /imu, of messages in JSON by their log time."""
    from mcap.writer import Writer

    buffer = io.BytesIO()
    writer = Writer(buffer)
    writer.start()
    imu = writer.register_channel("/imu", "json", writer.register_schema("sensor_msgs/Imu", "jsonschema", b"{}"))
    for time_ns, message in messages.items():
        writer.add_message(imu, time_ns, json.dumps(message).encode(), 0)
    writer.finish()
    return buffer.getvalue()


def test_mcap_of_another_program(tmp_path: Path) -> None:
    from mcap.writer import Writer

    buffer = io.BytesIO()
    writer = Writer(buffer)
    writer.start()
    schema = writer.register_schema("imu", "jsonschema", b"{}")
    imu = writer.register_channel("/robot/imu", "json", schema)
    other = writer.register_channel("/robot/image", "protobuf", schema)
    for n in range(100):
        message = {"linear": {"x": n / 10, "y": 1, "z": -1.5}, "valid": True, "frame": "base"}
        writer.add_message(imu, 1_700_000_000_000_000_000 + n * 10_000_000, json.dumps(message).encode(), 0)
        writer.add_message(other, 1_700_000_000_000_000_000, b"\x00\x01", 0)
    writer.finish()
    (tmp_path / "robot.mcap").write_bytes(buffer.getvalue())
    recording = import_recording(tmp_path / "robot.mcap", "robot", "")
    ((name, stream),) = recording.streams.items()
    assert name == "imu" and stream.modality == Modality("imu", ("linear.x", "linear.y", "linear.z"), "", 100.0)
    assert stream.values[7] == pytest.approx([0.7, 1.0, -1.5]) and stream.times_ns[7] == 70_000_000
    assert recording.meta["began"] == "2023-11-14T22:13:20Z"
    assert recording.meta.get("assumed_units") is None
    with pytest.raises(DataError, match="is a damaged MCAP file"):
        foreign_mcap.read(buffer.getvalue()[:-30] + b"x" * 30, "robot.mcap", "robot", "")


def test_mcap_of_a_robot() -> None:
    messages = {
        n * 10_000_000: {
            "header": {"stamp": {"sec": n}},
            "linear_acceleration": {"x": 0, "y": 0, "z": 9.80665},
            "angular_velocity": {"x": n / 10, "y": 0, "z": 0},
            "magnetic_field": {"x": 50e-6, "y": 0, "z": 0},
        }
        for n in range(50)
    }
    recording = foreign_mcap.read(imu_mcap(messages), "robot.mcap", "robot", "")
    modalities = {name: (one.modality.channels, one.modality.unit) for name, one in recording.streams.items()}
    xyz = ("x", "y", "z")
    assert modalities == {
        "imu": (("header.stamp.sec",), ""),
        "acc": (xyz, "g"),
        "gyro": (xyz, "rad/s"),
        "mag": (xyz, "uT"),
    }
    assert recording.streams["acc"].values[0] == pytest.approx([0, 0, 1])
    assert recording.streams["mag"].values[0] == pytest.approx([50, 0, 0])
    assert recording.streams["gyro"].modality.rate_hz == 100.0 and "assumed_units" not in recording.meta


# --- what people take away --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_read_back_as_they_were(kind: str, tmp_path: Path) -> None:
    recording = some(np.random.default_rng(1), gaps=True)
    files = export_recording(recording, tmp_path / "out", kind)
    assert {file.name for file in files} == {f"acc.{kind}", f"hr.{kind}", f"labels.{kind}", "recording.json"}
    same(recording, read_folder(tmp_path / "out"))
    same(recording, import_recording(tmp_path / "out", "walk"))
    with pytest.raises(DataError, match="exists already"):
        export_recording(recording, tmp_path / "out", kind)
    # One of the tables alone is understood too: it is named after its modality.
    alone = import_recording(tmp_path / "out" / f"acc.{kind}", "walk")
    np.testing.assert_array_equal(alone.streams["acc"].values, recording.streams["acc"].values)
    np.testing.assert_array_equal(alone.streams["acc"].times_ns, recording.streams["acc"].times_ns)


@settings(max_examples=25, deadline=None)
@given(
    times=st.lists(st.integers(0, 10**13), min_size=1, max_size=20, unique=True),
    seed=st.integers(0, 2**32),
    name=st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=20),
)
def test_any_tables_read_back(times: list[int], seed: int, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    rng = np.random.default_rng(seed)
    stamps = np.array(sorted(times), np.int64) - min(times)
    bits = rng.integers(0, 2**32, (len(stamps), 2), dtype=np.uint32).view(np.float32)
    values = np.where(np.isfinite(bits), bits, np.nan).astype(np.float32)
    modality = Modality("ppg", ("led", name if name.strip() not in ("led", "time_s") else "other"), "count", 7.0)
    if not modality.channels[1].strip() or modality.channels[1] != modality.channels[1].strip():
        modality = Modality("ppg", ("led", "other"), "count", 7.0)
    recording = Recording("r", "p", {}, {"ppg": Stream(modality, stamps, values)}, [Label(0, 1_500_000_000, name)])
    for kind in ("csv", "parquet"):
        folder = tmp_path_factory.mktemp(kind) / "out"
        export_recording(recording, folder, kind)
        same(recording, read_folder(folder))


def test_edf_reads_back_to_16_bits(tmp_path: Path) -> None:
    recording = some(np.random.default_rng(2), gaps=True)
    export_recording(recording, tmp_path / "walk.edf", "edf")
    back = import_recording(tmp_path / "walk.edf", "walk")
    assert back.meta["began"] == "2026-04-24T14:10:15" and back.labels == recording.labels
    for key, stream in recording.streams.items():
        known = np.isfinite(stream.values).all(axis=1)
        got = back.streams[key]
        assert got.modality == stream.modality
        np.testing.assert_allclose(got.times_ns, stream.times_ns[known], atol=1)
        step = np.ptp(stream.values[known], axis=0) / 65_000
        assert (np.abs(got.values - stream.values[known]) <= step).all()
    (tmp_path / "dots.edf").write_bytes(b"")
    with pytest.raises(DataError, match="exists already"):
        export_recording(recording, tmp_path / "dots.edf", "edf")


def test_a_rate_that_edf_cannot_have_is_told(tmp_path: Path) -> None:
    recording = some(np.random.default_rng(2))
    stream = recording.streams["acc"]
    recording.streams["acc"] = Stream(Modality("acc", ("x", "y", "z"), "g", 50.0123), stream.times_ns, stream.values)
    with pytest.raises(DataError, match=r"acc at 50\.0123 Hz.*export CSV"):
        export_recording(recording, tmp_path / "walk.edf", "edf")
    assert not list(tmp_path.iterdir())


def test_a_folder_with_mistakes(tmp_path: Path) -> None:
    export_recording(some(np.random.default_rng(1)), tmp_path / "out", "csv")
    acc = tmp_path / "out" / "acc.csv"
    lines = acc.read_text().splitlines()
    acc.write_text("\n".join([*lines[:4], "0.07,none,1,1", *lines[5:]]))
    with pytest.raises(DataError, match=r"acc\.csv, row 5, column x: 'none' is not a number"):
        read_folder(tmp_path / "out")
    acc.unlink()
    with pytest.raises(DataError, match=r"has no acc\.csv or \.parquet, though recording.json names it"):
        read_folder(tmp_path / "out")
    (tmp_path / "out" / "recording.json").write_text("{")
    with pytest.raises(DataError, match=r"recording\.json: is not what armlet writes"):
        read_folder(tmp_path / "out")
    with pytest.raises(DataError, match="is no folder that armlet can import"):
        import_recording(tmp_path, "x")


def test_without_its_package_a_format_says_which_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = some(np.random.default_rng(1))
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "edfio", None)
    for kind, package in (("parquet", "pyarrow"), ("edf", "edfio")):
        with pytest.raises(
            ArmletError, match=rf"needs {package}, which is not installed: pip install 'armlet\[recordings\]'"
        ):
            export_recording(recording, tmp_path / kind, kind)
    export_recording(recording, tmp_path / "csv", "csv")
    assert [one.name for one in tmp_path.iterdir()] == ["csv"]


# --- bytes ------------------------------------------------------------------------------------------------------------


def _edf_bytes() -> bytes:
    import edfio

    buffer = io.BytesIO()
    edfio.Edf([edfio.EdfSignal(np.arange(64.0), 8, label="EEG A")], annotations=[edfio.EdfAnnotation(1, 2, "x")]).write(
        buffer
    )
    return buffer.getvalue()


def _parquet_bytes() -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pa.table({"time_s": [0.0, 0.5], "acc_x": [1.0, 2.0]}), buffer)
    return buffer.getvalue()


def _mcap_bytes() -> bytes:
    message = {"x": 1.5, "y": {"z": 2}, "linear_acceleration": {"x": 1, "y": 2}}
    return imu_mcap({10**18 + n: message for n in range(3)})


def _zip_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in E4.items():
            archive.writestr(name, text)
    return buffer.getvalue()


READERS: dict[str, tuple[bytes, Callable[[bytes], Any]]] = {
    "polar": (POLAR["ACC"][:600].encode(), lambda data: read_polar([("a.txt", data)], "a", "")),
    "beats": (POLAR["RR"].encode(), lambda data: read_polar([("a.txt", data)], "a", "")),
    "pulse": (POLAR["HR"].encode(), lambda data: read_polar([("a.txt", data)], "a", "")),
    "e4": (E4["IBI.csv"].encode(), lambda data: empatica.read(e4({"IBI.csv": data.decode("latin-1")}), "a", "")),
    "e4 zip": (_zip_bytes(), lambda data: empatica.read(empatica.unzipped(data, "a.zip"), "a", "")),
    "csv": (b"time [ms],acc_x [g],hr\n0,1.5,70\n20,,71\n40,2,nan\n", lambda data: read_samples(data, "a.csv", "a", "")),
    "dates": (b"date;eeg_a\n2026-01-01T00:00:00Z;1\n", lambda data: read_samples(data, "a.csv", "a", "")),
    "commas": (b"time_s;acc_x\n0,5;-1,5\n1;2e1\n", lambda data: read_samples(data, "a.csv", "a", "")),
    "parquet": (_parquet_bytes(), lambda data: read_samples(data, "a.parquet", "a", "")),
    "mcap": (_mcap_bytes(), lambda data: foreign_mcap.read(data, "a.mcap", "a", "")),
    "edf": (_edf_bytes(), lambda data: edf.read(data, "a.edf", "a", "")),
}


TROUBLE = [b"\n", b",", b";", b"\0", b'"', b"-", b"e36", b"e999", b"9" * 30]


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_bytes_are_a_recording_or_one_sentence(name: str, data: st.DataObject) -> None:
    whole, read = READERS[name]
    spoilt = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(spoilt)))
        new = data.draw(st.binary(max_size=4) | st.sampled_from(TROUBLE))
        spoilt[at : at + data.draw(st.integers(0, 8))] = new
    try:
        recording = read(bytes(spoilt))
    except DataError as error:
        assert "\n" not in str(error)
        return
    write_to = io.BytesIO()
    from armlet_runtime.signals.recording_writer import RecordingWriter

    writer = RecordingWriter(write_to, "a", "")
    for stream in recording.streams.values():
        writer.stream(stream)  # raises if it is not what a stream must be


@given(st.lists(st.lists(st.text(max_size=3), min_size=1, max_size=40), max_size=3))
def test_cells_come_back_as_they_were(pieces: list[list[str]]) -> None:
    cells = Cells(pieces)
    assert list(cells.pieces()) == pieces
    assert list(cells) == [cell for piece in pieces for cell in piece] and len(cells) == len(list(cells))
    assert not pieces or [cells[index] for index in range(len(pieces[0]))] == pieces[0]


def test_rows_are_found_in_every_piece() -> None:
    rows = "".join(f"{n},{n / 8}\n" for n in range(2 * PIECE + 5))
    text = f"time_s,acc_x\n{rows}"
    assert read_samples(text.encode(), "a.csv", "a", "").streams["acc"].values[-1, 0] == (2 * PIECE + 4) / 8
    spoilt = text.replace(f"{PIECE + 7},", f"{PIECE + 7},no")
    with pytest.raises(DataError, match=f"row {PIECE + 9}, column acc_x: 'no"):
        read_samples(spoilt.encode(), "a.csv", "a", "")


# --- times ------------------------------------------------------------------------------------------------------------


@given(st.integers(-(10**18), 4 * 10**18))
def test_times_read_back(unix_ns: int) -> None:
    assert iso_ns(iso_text(unix_ns)) == unix_ns // 1000 * 1000


@given(st.text(max_size=40))
def test_any_text_is_a_time_or_none(text: str) -> None:
    assert iso_ns(text) is None or isinstance(iso_ns(text), int)
    name, unit = split_unit(text)
    assert isinstance(name, str) and isinstance(unit, str)


def test_zones() -> None:
    assert (
        iso_ns("2026-04-24T14:10:15.5+02:00") == iso_ns("2026-04-24 12:10:15.500Z") == iso_ns("2026-04-24T12:10:15,5")
    )
    assert iso_ns("2026-04-24") is None and iso_ns("9999-99-99T00:00:00") is None


# --- the commands -----------------------------------------------------------------------------------------------------


def test_what_is_imported_replays(
    small_bundle: SmallBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A CSV at 100 Hz in m/s2 and deg/s, through a bundle at 50 Hz in g and rad/s."""
    rows = ["clock,ax,ay,az,gx,gy,gz"]
    for n in range(1000):
        wave = np.sin(n / 30)
        rows.append(f"{1_700_000_000_000 + 10 * n},{9.8 * wave:.4f},0,9.8,{57.3 * wave:.3f},0,0")
    (tmp_path / "walk.csv").write_text("\n".join(rows))
    columns = ["--stream", "acc[m/s2]=ax,ay,az", "--stream", "gyro[deg/s]=gx,gy,gz", "--time", "clock"]
    out = tmp_path / "walk.mcap"
    assert main(["recordings", "import", str(tmp_path / "walk.csv"), str(out), "--person", "anna", *columns]) == 0
    shown = capsys.readouterr().out
    assert "walk of anna: 10.0 s, begun 2023-11-14T22:13:20Z" in shown and "taken as" not in shown
    assert "acc        1000 samples at 100 Hz, 100.0% received: x, y, z in g" in shown
    stream = read_recording(out).streams["acc"]
    assert stream.values[:, 2] == pytest.approx(0.99932, abs=1e-4)

    decisions = tmp_path / "d.jsonl"
    model = [str(small_bundle.path), "--key", str(small_bundle.public_key_path)]
    assert main(["replay", str(out), *model, "--decisions", str(decisions)]) == 0
    said = capsys.readouterr().out
    assert "acc comes at 100 Hz, and was brought to the model's 50 Hz" in said and "0 missed" in said
    lines = [json.loads(line) for line in decisions.read_text().splitlines()]
    assert len(lines) >= 17 and all(line["subset"] == ["acc", "gyro"] for line in lines)
    assert main(["recordings", "import", str(tmp_path / "walk.csv"), str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("kind", EXPORTS)
def test_export_and_info_of_a_recording(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "walk.mcap"
    write_recording(path, some(np.random.default_rng(4)))
    out = tmp_path / ("walk.edf" if kind == "edf" else "tables")
    assert main(["recordings", "export", str(path), str(out), "--to", kind, "--json", str(tmp_path / "r.json")]) == 0
    files = json.loads((tmp_path / "r.json").read_text())["files"]
    assert capsys.readouterr().out.split() == files and all(Path(file).stat().st_size for file in files)
    assert main(["recordings", "info", str(path)]) == 0
    shown = capsys.readouterr().out
    assert (
        "hr            9 samples at 1 Hz, 100.0% received: bpm in bpm" in shown
        and "labels: walking 1, sitting, then 1" in shown
    )


def test_mistakes_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.zip").write_bytes(_zip_bytes()[:40] + b"no")
    (tmp_path / "a.edf").write_bytes(b"0       " + struct.pack("<d", 1))
    for source, says in (
        ("none.csv", "none.csv cannot be read: No such file or directory"),
        ("a.zip", "is a zip file, but holds no session"),
        ("a.edf", "is a damaged EDF file"),
    ):
        assert main(["recordings", "import", str(tmp_path / source), str(tmp_path / "out.mcap")]) == 2
        said = capsys.readouterr().err
        assert says in said and said.count("\n") == 1
    write_recording(tmp_path / "walk.mcap", some(np.random.default_rng(1)))
    for out, to in (("walk.parquet", []), ("walk.edf", ["--to", "csv"]), ("walk", ["--to", "edf"])):
        assert main(["recordings", "export", str(tmp_path / "walk.mcap"), str(tmp_path / out), *to]) == 2
        assert "EDF+ goes into a file that ends in .edf" in capsys.readouterr().err
    (tmp_path / "walk.mcap").unlink()
    assert main(["recordings", "import", str(tmp_path / "a.edf"), str(tmp_path / "out")]) == 2
    assert "ends in .mcap" in capsys.readouterr().err
    assert main(["recordings", "import", str(tmp_path / "a.edf"), str(tmp_path / "o.mcap"), "--time", "t"]) == 2
    assert "leave out --stream and --time" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.mcap"))
