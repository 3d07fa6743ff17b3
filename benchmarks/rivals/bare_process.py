"""A process that decides with bare .pte programs: ``bare_process.py WHOSE MANIFEST STARTED_NS``.

``WHOSE`` is ``armlet``, for its engine ``executorch``; ``executorch``, for ExecuTorch's own Python runtime, which is
built on torch, with the same programs; or ``plain``, for that runtime with the plain export of the whole model, as in
ExecuTorch's documentation. ``MANIFEST`` is a JSON file of ``programs.manifest``. Prints cold start, resident memory and
the median time of a decision as JSON. All run on one thread.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DECISIONS = 200
TIMED = 3000


def with_armlet(encoders: dict[str, Any], aggregator: dict[str, Any], plain: str) -> Callable[[], object]:
    import numpy as np

    from armlet_runtime.engines import get_engine

    def load(part: dict[str, Any]) -> Any:
        shapes = ({name: tuple(shape) for name, shape in part[kind].items()} for kind in ("inputs", "outputs"))
        return get_engine("executorch").load(Path(part["file"]), *shapes)

    programs = {name: load(part) for name, part in encoders.items()}
    windows = {name: np.ones(part["inputs"]["window"], np.float32) for name, part in encoders.items()}
    last = load(aggregator)

    def decide() -> object:
        tokens = [programs[name]({"window": window})["token"] for name, window in windows.items()]
        return last({"tokens": np.concatenate(tokens, axis=1)})

    return decide


def load_theirs(file: str) -> Any:
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    _unsafe_reset_threadpool(1)
    return Runtime.get().load_program(file).load_method("forward")


def with_executorch(encoders: dict[str, Any], aggregator: dict[str, Any], plain: str) -> Callable[[], object]:
    import torch

    programs = {name: load_theirs(part["file"]) for name, part in encoders.items()}
    windows = {name: torch.ones(part["inputs"]["window"]) for name, part in encoders.items()}
    last = load_theirs(aggregator["file"])

    def decide() -> object:
        tokens = [programs[name].execute([window])[0] for name, window in windows.items()]
        return last.execute([torch.cat(tokens, dim=1)])

    return decide


def with_plain(encoders: dict[str, Any], aggregator: dict[str, Any], plain: str) -> Callable[[], object]:
    import torch

    whole = load_theirs(plain)
    windows = [torch.ones(part["inputs"]["window"]) for part in encoders.values()]
    return lambda: whole.execute(windows)


def main(whose: str, manifest: str, started_ns: str) -> None:
    parts = json.loads(Path(manifest).read_text())
    decide = {"armlet": with_armlet, "executorch": with_executorch, "plain": with_plain}[whose](**parts)
    decide()
    cold_start_s = (time.monotonic_ns() - int(started_ns)) / 1e9
    for _ in range(DECISIONS):
        decide()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    resident_bytes = pages * os.sysconf("SC_PAGE_SIZE")
    times = []
    for _ in range(TIMED):
        start = time.perf_counter_ns()
        decide()
        times.append(time.perf_counter_ns() - start)
    decision_us = statistics.median(times) / 1000
    # On a line of its own: ExecuTorch prints notes.
    figures = {"cold_start_s": cold_start_s, "resident_bytes": resident_bytes, "decision_us": decision_us}
    print("\n" + json.dumps(figures), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
