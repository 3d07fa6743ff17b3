"""The clockwork of a live run."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import weakref

import pytest

from armlet_runtime.bluetooth import Session
from armlet_runtime.bluetooth import run_loop as driver


class Knot:
    """An object that holds itself."""

    def __init__(self) -> None:
        self.itself = self


def test_what_hangs_together_in_cycles_is_collected_however_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "COLLECT_NS", 0)
    turns: list[weakref.ref[Knot]] = []

    def turn(_packets: object, _now_ns: int) -> int | None:
        if not turns:
            knot = Knot()
            gc.collect(1)  # now it is among the old, which only a full collection looks at
            turns.append(weakref.ref(knot))
        else:
            turns.append(turns[0])
        return None

    async def run() -> None:
        await driver.drive(Session([]), turn, 0.1)

    gc.disable()
    try:
        asyncio.run(run())
    finally:
        gc.enable()
    assert len(turns) > 1 and turns[0]() is None


STUBBORN = """
import asyncio, sys
import armlet_runtime.bluetooth.link as link
import armlet_runtime.bluetooth.run_loop as run_loop
import armlet_runtime.bluetooth.session as session
session.CANCEL_S = run_loop.END_S = 0.2

async def stubborn(self):
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

async def main():
    link.LinkSupervisor.run = stubborn
    await run_loop.drive(session.Session([], ("Acc",)), lambda packets, now_ns: None, 0.1)
    print("driven", flush=True)

sys.exit(run_loop.run_main(main()))
"""


def test_a_task_that_does_not_end_does_not_keep_the_process() -> None:
    ended = subprocess.run([sys.executable, "-c", STUBBORN], capture_output=True, text=True, timeout=20)
    assert ended.returncode == 0 and ended.stdout == "driven\n"
    assert "link Acc does not end; its link may stay up" in ended.stderr


def test_an_interrupted_run_ends_its_tasks_in_order() -> None:
    ended: list[str] = []

    async def main() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(10)
        finally:
            await asyncio.sleep(0.01)
            ended.append("main")

    with pytest.raises(KeyboardInterrupt):
        driver.run_main(main())
    assert ended == ["main"]
