"""The clockwork of a live run."""

from __future__ import annotations

import asyncio
import gc
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
