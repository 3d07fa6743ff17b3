"""The Python API and the live enrolment, over virtual wearables in another process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

import armlet_runtime
from armlet_runtime import Decision, open_live
from armlet_runtime.api import Live
from armlet_runtime.cli import main
from armlet_runtime.errors import UsageError
from armlet_runtime.signals.recording import Packet
from tests.support.small_bundle import SmallBundle

from .test_live_commands import wearables


@pytest.fixture(scope="module")
def air(played: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with wearables(played, tmp_path_factory.mktemp("air")) as bluetooth:
        yield bluetooth


@pytest.fixture
def live(air: str, small_bundle: SmallBundle) -> Live:
    keys = [small_bundle.public_key_path]
    return open_live(small_bundle.path, bluetooth=air, wearables=["any"], keys=keys, duration_s=60.0)


def threads() -> int:
    return sum(thread.name == "armlet-live" for thread in threading.enumerate())


def test_two_lines_iterate_over_the_decisions(live: Live) -> None:
    decisions: list[Decision] = []
    for decision in live:
        decisions.append(decision)
        if len(decisions) == 5:
            break
    assert [decision.index for decision in decisions] == list(range(5))
    assert decisions[-1].subset == ("acc", "gyro") and decisions[-1].label in live.core.labels
    assert decisions[-1].latency_s is not None
    assert threads() == 0 and live.dropped == 0  # leaving the loop ends the links and the thread

    # Once more with the same object: a run of its own, and a callback that has enough.
    seen: list[Decision] = []

    def callback(decision: Decision) -> None:
        seen.append(decision)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        live.run(callback)
    assert [decision.index for decision in seen] == [0, 1, 2] and threads() == 0


async def test_async_for_does_the_same(live: Live) -> None:
    seen = []
    async with aclosing(aiter(live)) as decisions:
        async for decision in decisions:
            seen.append(decision.index)
            if len(seen) == 3:
                break
    assert seen == [0, 1, 2]


def test_a_class_is_enrolled_live(
    air: str, small_bundle: SmallBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "small.armlet"
    bundle.write_bytes(small_bundle.path.read_bytes())
    key = ["--key", str(small_bundle.public_key_path)]
    assert main(["enrol", "wave", str(bundle), *key, "--from", "2s", "--bluetooth", air, "--wearables", "any"]) == 0
    said = capsys.readouterr().out
    assert "now, for 2 s: wave" in said and "wave: live (" in said and "not known on" not in said
    assert "wave" in open_live(bundle, keys=[small_bundle.public_key_path]).core.labels


def test_a_slow_loop_loses_the_oldest_and_says_so(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("armlet_runtime.api.MAX_WAITING", 2)
    decisions = iter(live)
    first = next(decisions)
    while live.dropped < 2:
        threading.Event().wait(0.1)
    second = next(decisions)
    decisions.close()  # type: ignore[attr-defined]
    assert first.index == 0 and second.index > 1 and threads() == 0


def test_what_goes_wrong_is_raised_where_decisions_are_waited_for(small_bundle: SmallBundle) -> None:
    keys = [small_bundle.public_key_path]
    with pytest.raises(UsageError, match="there is no Bluetooth 'nonsense'"):
        next(iter(open_live(small_bundle.path, keys=keys, bluetooth="nonsense")))
    with pytest.raises(UsageError, match="macro-F1 lies between 0 and 1"):
        open_live(small_bundle.path, keys=keys, floor=2.0)

    live = open_live(small_bundle.path, keys=keys, bluetooth="nonsense")
    assert live.core.packet(Packet(1, "w", "connected", "", b"")) == []  # a core of its own, ready to be looked at
    assert set(armlet_runtime.__all__) == {"Decision", "Live", "open_live"}
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = armlet_runtime.nothing
