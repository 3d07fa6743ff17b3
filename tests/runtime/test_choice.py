"""Which wearables are connected: those that a person named, and no stranger."""

from __future__ import annotations

import os
import pty
import select
import subprocess
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import pytest

from armlet_bridge.radio.bumble_backend import open_bluetooth as open_bumble
from armlet_bridge.virtual.air import AirController, AirLink
from armlet_bridge.virtual.wearable import Play, WearableSpec, put_on
from armlet_runtime.api import open_live
from armlet_runtime.bluetooth import ANY, Nearby, Session, choice, choose_wearables, names_of
from armlet_runtime.commands.bluetooth_arguments import picked
from armlet_runtime.errors import UsageError
from armlet_runtime.modalities import Modality
from armlet_runtime.signals import Recording, Stream, read_recording
from tests.support.small_bundle import SmallBundle

from .test_ble import ACC, GYRO, HR, counting
from .test_ble_links import ran
from .test_live_commands import ARMLET, armlet, wait_for, wearables


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "LISTEN_S", 1.0)


def untouched(play: Play) -> bool:
    return not any(wearable._device.connections for wearable in play.wearables.values())


async def test_without_names_nobody_is_connected_and_those_in_reach_are_listed() -> None:
    air = AirLink()
    async with (
        put_on(counting(2.0), air, [ACC, GYRO, HR]) as play,
        open_bumble(AirController("host", air)) as bluetooth,
    ):
        with pytest.raises(UsageError) as refused:
            await choose_wearables([bluetooth], (), ("acc", "gyro"))
        addresses = {name: str(one._device.random_address)[:17] for name, one in play.wearables.items()}
        listed = str(refused.value).partition("in reach: ")[2].removesuffix(")").split(", ")
        assert str(refused.value).startswith("name the wearables to connect with --wearables NAME,NAME")
        assert sorted(listed) == [f"'Acc' {addresses['Acc']}", f"'Gyro' {addresses['Gyro']}"]
        with pytest.raises(UsageError, match="no wearable of use is in reach"):
            await choose_wearables([bluetooth], (), ("eeg",))
        assert untouched(play)


async def test_a_person_chooses_among_those_in_reach() -> None:
    proposed: list[str] = []

    def ask(nearby: Sequence[Nearby]) -> Sequence[Nearby]:
        proposed.extend(device.name for device in nearby)
        return [device for device in nearby if device.name == "Gyro"]

    air = AirLink()
    async with put_on(counting(2.0), air, [ACC, GYRO]) as play, open_bumble(AirController("host", air)) as bluetooth:
        assert await choose_wearables([bluetooth], (), (), ask) == ("Gyro",)
        assert sorted(proposed) == ["Acc", "Gyro"] and untouched(play)
        with pytest.raises(UsageError, match="name the wearables"):
            await choose_wearables([bluetooth], (), (), lambda nearby: [])


async def test_names_are_taken_as_they_are_and_any_stands_alone() -> None:
    assert await choose_wearables([], ["Acc", "C0:FF"]) == ("Acc", "C0:FF")
    assert await choose_wearables([], [ANY]) == ()
    with pytest.raises(UsageError, match="'any' means every wearable"):
        await choose_wearables([], ["any", "Acc"])


def test_what_has_no_name_of_its_own_is_called_by_its_address() -> None:
    def device(name: str, address: str) -> Nearby:
        return Nearby(name, address, -50, (), ("imu",), ("acc",))

    nearby = [device("A", "1"), device("B", "2"), device("B", "3"), device("", "4"), device("C, D", "5")]
    assert names_of(nearby, nearby) == ("A", "2", "3", "4", "5")


@pytest.mark.parametrize(("answer", "numbers"), [("1", [0]), ("3, 1", [0, 2]), ("2 2", [1]), ("", []), (" ", [])])
def test_answers_are_numbers(answer: str, numbers: list[int]) -> None:
    nearby = [Nearby(name, name, -50, (), (), ()) for name in "abc"]
    assert picked(nearby, answer) == [nearby[number] for number in numbers]


@pytest.mark.parametrize("answer", ["0", "4", "-1", "a", "1.5", "1;2", "²"])
def test_other_answers_are_asked_again(answer: str) -> None:
    with pytest.raises(UsageError, match="give numbers from 1 to 3"):
        picked([Nearby(name, name, -50, (), (), ()) for name in "abc"], answer)


async def test_no_program_is_sent_to_a_device_that_nobody_named() -> None:
    times = (np.arange(500) * 20_000_000).astype(np.int64)
    stream = Stream(Modality("acc", ("x", "y", "z"), "g", 50.0), times, np.zeros((500, 3), np.float32))
    spec = WearableSpec("Bangle.js abcd", ("acc",), "uart")
    for names in ((), (spec.name,)):
        air = AirLink()
        async with AsyncExitStack() as stack:
            worn = put_on(Recording("still", "nobody", streams={"acc": stream}), air, [spec])
            twin = (await stack.enter_async_context(worn)).wearables[spec.name]._twin
            bluetooth = await stack.enter_async_context(open_bumble(AirController("host", air)))
            session = Session(bluetooth, names)
            run = await stack.enter_async_context(ran(session))
            wanted = "streaming" if names else "refused"
            await run.until(lambda: bool(session.links) and session.links[spec.name].state == wanted, 10)  # noqa: B023
            assert bool(twin._code) is bool(names)  # type: ignore[attr-defined]
            if not names:
                assert "only if a person names it: --wearables NAME" in session.links[spec.name].problem


def test_commands_without_a_terminal_end_with_one_sentence(
    small_bundle: SmallBundle, played: Path, tmp_path: Path
) -> None:
    model = [small_bundle.path, "--key", small_bundle.public_key_path]
    files = ["--record", tmp_path / "r.mcap", "--decisions", tmp_path / "d.jsonl"]
    with wearables(played, tmp_path) as bluetooth:
        reach: list[str | Path] = ["--bluetooth", bluetooth]
        for command in (
            ["run", *model, *reach, *files],
            ["record", tmp_path / "r.mcap", *reach],
            ["enrol", "jump", *model, *reach],
        ):
            refused = armlet(*command)
            assert refused.returncode == 2
            assert refused.stderr.startswith("armlet: name the wearables to connect with --wearables NAME,NAME (in re")
            assert "'Armlet-Acc' " in refused.stderr and "'Armlet-Gyro' " in refused.stderr
            assert refused.stderr.count("\n") == 1
        live = open_live(small_bundle.path, bluetooth=bluetooth, keys=[small_bundle.public_key_path])
        with pytest.raises(UsageError, match="in reach: '"):
            next(iter(live))
    assert not (tmp_path / "r.mcap").exists() and not (tmp_path / "d.jsonl").exists()


def test_a_person_at_the_terminal_is_asked(played: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with wearables(played, tmp_path) as bluetooth:
        command = ["record", str(tmp_path / "r.mcap"), "--bluetooth", bluetooth, "--duration", "4"]
        process = subprocess.Popen([*ARMLET, *command], stdin=theirs, stdout=theirs, stderr=subprocess.PIPE)
        os.close(theirs)
        shown = ""

        def asked() -> bool:
            nonlocal shown
            if not select.select([ours], [], [], 1.0)[0]:
                return False
            shown += os.read(ours, 4096).decode()
            return "which of them are yours?" in shown

        wait_for(asked)
        (number,) = [line.split()[0] for line in shown.splitlines() if "Armlet-Gyro" in line]
        os.write(ours, f"{number}\n".encode())
        _, error = process.communicate(timeout=30)
    os.close(ours)
    assert process.returncode == 0, error
    assert {packet.wearable for packet in read_recording(tmp_path / "r.mcap").packets} == {"Armlet-Gyro"}
