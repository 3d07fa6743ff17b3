"""armlet run, replay and record as a person uses them: processes, files, signals, and Bluetooth between processes."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from armlet_runtime.bundle.manifest import Confidence, HiddenMarkov
from armlet_runtime.cli import main
from armlet_runtime.commands import enrol
from armlet_runtime.decisions import Decision
from armlet_runtime.live.core import LiveCore
from armlet_runtime.live.enrol_recording import recorded_windows
from armlet_runtime.modalities import Modality
from armlet_runtime.model.bundle_model import BundleModel
from armlet_runtime.model.enrolled_classes import Layer
from armlet_runtime.model.policy import Policy
from armlet_runtime.model.prototypes import Bank, make_example
from armlet_runtime.signals.recording import ENDED_NS, Packet, Recording, Stream
from armlet_runtime.signals.recording_reader import read_recording
from armlet_runtime.signals.recording_writer import write_recording
from tests.support.small_bundle import SmallBundle

ARMLET = [sys.executable, "-m", "armlet_runtime"]
ANY = ["--wearables", "any"]


def armlet(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*ARMLET, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@contextmanager
def wearables(played: Path, folder: Path, *arguments: str) -> Iterator[str]:
    """Virtual wearables in a process of their own; gives what ``--bluetooth`` needs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["wearables", "simulate", str(played), "--listen", f"tcp-server:127.0.0.1:{port}", *arguments]
    command += ["--events", str(folder / "log.jsonl")]
    process = subprocess.Popen([*ARMLET, *command], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert "on the air" in process.stdout.readline()
        yield f"bumble:tcp-client:127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def live(played: Path, small_bundle: SmallBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one live run with the gyroscope's link cut from 4 to 7 s."""
    folder = tmp_path_factory.mktemp("live")
    with wearables(played, folder, "--duration", "11", "--link-loss", "gyro:4:7", "--drift-ppm", "50") as bluetooth:
        ran = armlet(
            "run", small_bundle.path, "--key", small_bundle.public_key_path, "--bluetooth", bluetooth,
            *ANY, "--duration", "11.5", "--record", folder / "live.mcap", "--decisions", folder / "live.jsonl",
            "--json", folder / "live.json", "--mqtt", "mqtt://127.0.0.1:9/nobody/listens",
        )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "0 missed" in ran.stdout and "Armlet-Gyro: missing (the link was lost)" in ran.stdout
    return folder


def test_live_run_goes_on_without_the_lost_sensor(live: Path) -> None:
    decisions, log, summary = (
        lines(live / "live.jsonl"),
        lines(live / "log.jsonl"),
        json.loads((live / "live.json").read_text()),
    )
    assert [decision["index"] for decision in decisions] == list(range(len(decisions)))
    lost_ns, back_ns = (
        next(event["monotonic_ns"] for event in log if event["event"] == name) for name in ("link_lost", "link_back")
    )
    out = [(d["window_end_ns"] + round(d["latency_s"] * 1e9), d["subset"]) for d in decisions]
    limit_ns = lost_ns + 500_000_000
    first_without = next(at for at, subset in out if at > lost_ns and subset == ["acc"])
    whole = next(at for at, subset in out if at > back_ns and subset == ["acc", "gyro"])
    assert 0 < (first_without - limit_ns) / 1e9 <= 0.5 + 0.05  # one hop and 50 ms
    assert 0 < (whole - back_ns) / 1e9 <= 3.0
    assert all(subset == ["acc"] for at, subset in out if first_without < at < whole)

    assert summary["decisions"] == len(decisions) and summary["missed"] == 0 and summary["dropped_packets"] == 0
    assert summary["engine"] == "litert" and "1 thread" in summary["engine_detail"]
    assert summary["subsets"]["acc+gyro"] + summary["subsets"]["acc"] <= len(decisions)
    assert [change["subset"] for change in summary["transitions"]][:3] == ["acc+gyro", "acc", "acc+gyro"]
    (sink,) = summary["sinks"]
    assert sink["lost"] == len(decisions) and sink["sent"] == 0 and "cannot be reached" in sink["problem"]
    assert 0 <= summary["latency_s"]["p50"] <= summary["latency_s"]["p99"] <= 0.3
    assert 0 < summary["compute_s"]["p50"] < 0.1
    assert summary["ready_s"] < summary["cold_start_s"] < 10
    assert 20e6 < summary["memory"]["resident_bytes"] <= summary["memory"]["peak_bytes"] < 300e6
    acc, gyro = (summary["wearables"][name]["profiles"]["imu"] for name in ("Armlet-Acc", "Armlet-Gyro"))
    assert acc["connections"] == 1 and gyro["connections"] == 2
    assert 250 < acc["packets"] <= 275 and acc["packets"] > gyro["packets"] > 100
    assert all(c["samples"] == 2 * c["packets"] and c["malformed"] == c["lost"] == 0 for c in (acc, gyro))


def test_replay_gives_the_live_decisions_byte_for_byte(live: Path, small_bundle: SmallBundle, tmp_path: Path) -> None:
    key = small_bundle.public_key_path
    for name in ("one", "two"):
        done = armlet(
            "replay", live / "live.mcap", small_bundle.path, "--key", key,
            "--decisions", tmp_path / f"{name}.jsonl", "--json", tmp_path / f"{name}.json",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        count = len(lines(live / "live.jsonl"))
        assert f"\n{count} of the live run's {count} decisions are the same here\n" in done.stdout
        assert re.search(r"acc\+gyro -> .*\(certified macro-F1 [\d.]+.* on random numbers\)", done.stdout)
        assert "certified figures hold for sensors worn as in random numbers\n" in done.stdout
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    assert read_recording(live / "live.mcap").decisions == (live / "live.jsonl").read_bytes().splitlines()
    timed = [{**decision, "latency_s": None, "compute_s": None} for decision in lines(live / "live.jsonl")]
    assert lines(tmp_path / "one.jsonl") == timed
    summary, lived = (json.loads(path.read_text()) for path in (tmp_path / "one.json", live / "live.json"))
    assert summary["latency_s"] is None and summary["cold_start_s"] is None
    for same in ("decisions", "missed", "subsets", "labels", "transitions", "digest"):
        assert summary[same] == lived[same]


def test_twenty_replays_are_the_live_run_byte_for_byte(live: Path, small_bundle: SmallBundle) -> None:
    """With all that may hold state from window to window: temperatures, a hidden Markov model, an enrolled class."""
    bundle = small_bundle.open()
    subsets = ("acc+gyro", "acc", "gyro")
    smoothing = HiddenMarkov(tuple(tuple(0.7 if a == b else 0.1 for a in range(4)) for b in range(4)), (0.25,) * 4, 0.5)
    manifest = msgspec.structs.replace(
        bundle.manifest, smoothing=smoothing, confidence=Confidence(dict.fromkeys(subsets, 0.7), 0.3)
    )
    recording = read_recording(live / "live.mcap")
    plain, model = (BundleModel(one, bundle.read) for one in (bundle.manifest, manifest))
    learned = recorded_windows(model, recording.packets, 3.0, 1.0)
    layer = Layer(1, bundle.digest).enrol("wave", make_example(model, Bank(manifest, bundle.read), learned, "live"))

    def replay(core: LiveCore, packets: list[Packet], ended_ns: int | None = None) -> list[bytes]:
        decisions = [decision for packet in packets for decision in core.packet(packet)]
        decisions += core.advance(ended_ns) if ended_ns is not None else []
        return [decision.to_json() for decision in decisions]

    ended_ns = int(recording.meta[ENDED_NS])
    lived = [msgspec.json.decode(line, type=Decision) for line in (live / "live.jsonl").read_bytes().splitlines()]
    timeless = [msgspec.structs.replace(one, latency_s=None, compute_s=None).to_json() for one in lived]
    assert replay(LiveCore(plain), recording.packets, ended_ns) == timeless

    runs = [replay(LiveCore(model, policy=Policy(layer=layer)), recording.packets, ended_ns) for _ in range(20)]
    assert all(run == runs[0] for run in runs) and len(runs[0]) == len(lived)
    labels = [msgspec.json.decode(line, type=Decision) for line in runs[0]]
    assert "wave" in {one.label for one in labels} and any(one.label != one.raw_label for one in labels)

    # A recording that ends early, or was cut: the same decisions up to there.
    for count in (100, len(recording.packets) // 2):
        part = replay(LiveCore(model, policy=Policy(layer=layer)), recording.packets[:count])
        assert part and part == runs[0][: len(part)]


def test_a_full_disk_is_one_sentence(live: Path, small_bundle: SmallBundle) -> None:
    key: list[str | Path] = ["--key", small_bundle.public_key_path]
    full = armlet("replay", live / "live.mcap", small_bundle.path, *key, "--decisions", "/dev/full")
    assert full.returncode == 2
    assert full.stderr.splitlines() == ["armlet: cannot write /dev/full: No space left on device"]


def test_a_full_disk_ends_no_live_run(played: Path, small_bundle: SmallBundle, tmp_path: Path) -> None:
    with wearables(played, tmp_path, "--duration", "6") as bluetooth:
        ran = armlet(
            "run", small_bundle.path, "--key", small_bundle.public_key_path, "--bluetooth", bluetooth, *ANY,
            "--duration", "5", "--decisions", "/dev/full", "--json", tmp_path / "live.json",
        )  # fmt: skip
    assert ran.returncode == 0
    (why,) = [line for line in ran.stderr.splitlines() if "/dev/full" in line]
    assert why == "armlet: cannot write /dev/full: No space left on device: decisions are made, and not written there"
    summary = json.loads((tmp_path / "live.json").read_text())
    (report,) = summary["sinks"]
    assert report["sink"] == "/dev/full" and report["lost"] == summary["decisions"] > 3


def test_a_second_signal_ends_a_run_at_once(played: Path, small_bundle: SmallBundle, tmp_path: Path) -> None:
    """The wearables' controller hangs, so that no link can be ended."""
    simulate = [*ARMLET, "wearables", "simulate", str(played), "--listen", "tcp-server:127.0.0.1:0"]
    controller = subprocess.Popen(simulate, stdout=subprocess.PIPE, text=True)
    try:
        assert controller.stdout is not None
        reach = ["--bluetooth", f"bumble:{controller.stdout.readline().split()[-1]}", *ANY]
        files = ["--record", str(tmp_path / "r.mcap"), "--decisions", str(tmp_path / "d.jsonl")]
        model = [str(small_bundle.path), "--key", str(small_bundle.public_key_path)]
        run = subprocess.Popen([*ARMLET, "run", *model, *reach, *files], stdout=subprocess.DEVNULL)
        while not (tmp_path / "d.jsonl").exists() or len(lines(tmp_path / "d.jsonl")) < 5:
            assert run.poll() is None
            time.sleep(0.1)
        controller.send_signal(signal.SIGSTOP)
        run.send_signal(signal.SIGINT)
        time.sleep(1.5)
        assert run.poll() is None  # it waits for the controller
        run.send_signal(signal.SIGINT)
        assert run.wait(1.0) == -signal.SIGINT
    finally:
        controller.kill()
        controller.wait()
    kept = read_recording(tmp_path / "r.mcap")
    assert kept.truncated and len(kept.decisions) >= 4


def test_decisions_of_an_earlier_run_are_kept(live: Path, small_bundle: SmallBundle, tmp_path: Path) -> None:
    decisions = tmp_path / "d.jsonl"
    decisions.write_text("earlier\n")
    model: list[str | Path] = [small_bundle.path, "--key", small_bundle.public_key_path]
    done = armlet("replay", live / "live.mcap", *model, "--decisions", decisions)
    (kept,) = tmp_path.glob("d-*.jsonl")
    assert kept.read_text() == "earlier\n" and lines(decisions)
    assert done.stderr == f"armlet: {decisions} held decisions of an earlier run, which are in {kept} now\n"


def test_replay_at_a_speed_takes_as_long(live: Path, small_bundle: SmallBundle, tmp_path: Path) -> None:
    recording = read_recording(live / "live.mcap")
    recording.packets = recording.packets[:120]
    del recording.meta["ended_ns"]
    write_recording(tmp_path / "short.mcap", recording)
    took = {}
    for flag in ([], ["--speed", "2"]):
        done = armlet(
            "replay", tmp_path / "short.mcap", small_bundle.path, "--key", small_bundle.public_key_path, *flag,
            "--decisions", tmp_path / f"{len(flag)}.jsonl", "--json", tmp_path / "s.json",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        took[len(flag)] = json.loads((tmp_path / "s.json").read_text())["ran_s"]
    length_s = (recording.packets[-1].arrival_ns - recording.packets[0].arrival_ns) / 1e9
    assert took[2] >= length_s / 2 > took[0]
    assert (tmp_path / "0.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()


@contextmanager
def terminal() -> Iterator[tuple[int, Callable[[], str]]]:
    """A terminal for a process, and what was shown on it when the process has ended."""
    ours, theirs = pty.openpty()
    shown = bytearray()

    def read() -> None:
        while True:
            try:
                data = os.read(ours, 4096)
            except OSError:  # nobody has it open any more
                return
            shown.extend(data)

    reader = threading.Thread(target=read)

    def text() -> str:
        os.close(theirs)
        reader.join(10)
        return shown.decode()

    reader.start()
    try:
        yield theirs, text
    finally:
        os.close(ours)


def test_ctrl_c_ends_a_run_cleanly(played: Path, small_bundle: SmallBundle, tmp_path: Path) -> None:
    files = ["--record", tmp_path / "r.mcap", "--decisions", tmp_path / "d.jsonl", "--json", tmp_path / "s.json"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with wearables(played, tmp_path) as bluetooth, terminal() as (screen, shown):
        command = [
            "run",
            small_bundle.path,
            "--key",
            small_bundle.public_key_path,
            "--bluetooth",
            bluetooth,
            *ANY,
            *files,
        ]
        process = subprocess.Popen(
            [*ARMLET, *map(str, command)], stdout=screen, stderr=subprocess.PIPE, env=environment
        )
        wait_for(lambda: (tmp_path / "d.jsonl").exists() and len(lines(tmp_path / "d.jsonl")) >= 5)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=15)
        text = shown()
    assert process.returncode == 0 and b"Traceback" not in error
    # The table while it ran, and the summary after it.
    assert "wearable" in text and "streaming" in text and "latency" in text and "acc+gyro" in text
    assert "0 missed" in text and text.rindex("0 missed") > text.rindex("wearable")
    recording = read_recording(tmp_path / "r.mcap")
    assert not recording.truncated and "ended_ns" in recording.meta
    assert json.loads((tmp_path / "s.json").read_text())["decisions"] == len(lines(tmp_path / "d.jsonl"))


def test_a_run_that_loses_its_bluetooth_keeps_what_it_did(
    played: Path, small_bundle: SmallBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr("armlet_runtime.bluetooth.adapters.GIVE_UP_S", 1.0)
    model = [str(small_bundle.path), "--key", str(small_bundle.public_key_path)]
    live, again, summary, record = (tmp_path / name for name in ("d.jsonl", "again.jsonl", "s.json", "r.mcap"))
    files = ["--record", str(record), "--decisions", str(live), "--json", str(summary)]
    with wearables(played, tmp_path, "--duration", "4") as bluetooth:  # then the virtual air is gone
        assert main(["run", *model, "--bluetooth", bluetooth, *ANY, "--duration", "60", *files]) == 2
    said = capfd.readouterr().err
    assert "Bluetooth cannot be used here (the connection to the Bluetooth controller is lost)" in said
    assert json.loads(summary.read_text())["decisions"] == len(lines(live)) > 5
    assert main(["replay", str(record), *model, "--decisions", str(again)]) == 0
    assert [d["subset"] for d in lines(again)] == [d["subset"] for d in lines(live)]


def test_a_killed_run_leaves_a_recording_to_replay(played: Path, small_bundle: SmallBundle, tmp_path: Path) -> None:
    with wearables(played, tmp_path) as bluetooth:
        command = ["record", tmp_path / "r.mcap", "--bluetooth", bluetooth, *ANY, "--person", "p07"]
        process = subprocess.Popen([*ARMLET, *map(str, command)], stdout=subprocess.PIPE)
        wait_for(lambda: (tmp_path / "r.mcap").exists() and (tmp_path / "r.mcap").stat().st_size > 5000)
        process.kill()
        process.wait()
    recording = read_recording(tmp_path / "r.mcap")
    assert recording.truncated and recording.person == "p07" and len(recording.packets) > 40
    key = small_bundle.public_key_path
    done = armlet("replay", tmp_path / "r.mcap", small_bundle.path, "--key", key)
    assert done.returncode == 0 and "has no end" in done.stderr and "acc+gyro" in done.stdout
    again = armlet("record", tmp_path / "r.mcap", *ANY)
    assert again.returncode == 2 and "exists already" in again.stderr


def wait_for(condition: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def test_mistakes_are_one_sentence(small_bundle: SmallBundle, played: Path, tmp_path: Path) -> None:
    key: list[str | Path] = ["--key", small_bundle.public_key_path]
    (tmp_path / "broken.mcap").write_bytes(b"no recording")
    backwards = Recording("b", "p", packets=[Packet(5, "w", "connected", "", b""), Packet(4, "w", "data", "", b"")])
    write_recording(tmp_path / "backwards.mcap", backwards)
    lead = Modality("ecg", ("ecg",), "mV", 130.0)
    heart = Stream(lead, np.arange(3, dtype=np.int64), np.zeros((3, 1), np.float32))
    write_recording(tmp_path / "other.mcap", Recording("o", "p", streams={"ecg": heart}))
    write_recording(tmp_path / "endless.mcap", Recording("e", "p", {ENDED_NS: "9" * 30}, packets=backwards.packets[:1]))
    mistakes: list[tuple[list[str | Path], str]] = [
        (["replay", tmp_path / "other.mcap", small_bundle.path, *key], "has ecg; the model wants acc, gyro"),
        (["replay", tmp_path / "broken.mcap", small_bundle.path, *key], "is not an MCAP file"),
        (["replay", tmp_path / "none.mcap", small_bundle.path, *key], "cannot be read"),
        (["replay", tmp_path / "backwards.mcap", small_bundle.path, *key], "packets must come in order of arrival"),
        (["run", small_bundle.path, *key, "--bluetooth", "nonsense"], "there is no Bluetooth 'nonsense'"),
        (["run", small_bundle.path, *key, "--bluetooth", "bumble:tcp-client:127.0.0.1:1"], "127.0.0.1:1"),
        (["run", small_bundle.path, *key, "--engine", "nonsense"], "nonsense"),
        (["run", tmp_path / "none.armlet", *key], "none.armlet"),
        (["run", small_bundle.path, *key, *ANY, "--decisions", tmp_path / "no" / "d.jsonl"], "cannot write"),
        (["record", tmp_path / "r.mcap", "--bluetooth", "bumble:tcp-client:127.0.0.1:1"], "127.0.0.1:1"),
        (["run", small_bundle.path, *key, "--record", tmp_path / "r.mcap", "--bluetooth", "nonsense"], "nonsense"),
        (["replay", tmp_path / "endless.mcap", small_bundle.path, *key], "a week or more after its last packet"),
    ]
    for arguments, says in mistakes:
        refused = armlet(*arguments)
        assert refused.returncode == 2, arguments
        assert says in refused.stderr, refused.stderr
        # The engine may say a line of its own.
        assert "Traceback" not in refused.stderr and refused.stderr.count("\n") <= 2, refused.stderr


def test_a_live_example_of_silent_wearables_is_given_up(
    small_bundle: SmallBundle,
    played: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(enrol, "PATIENCE_S", 3.0)
    command = ["enrol", "jump", str(small_bundle.path), "--key", str(small_bundle.public_key_path)]
    # Connected, and silent: what is played begins when the other one is connected, too.
    with wearables(played, tmp_path) as bluetooth:
        assert main([*command, "--bluetooth", bluetooth, "--wearables", "Armlet-Acc"]) == 2
    assert "no sensor was there for 3 s" in capsys.readouterr().err
