"""A process that decides with bare .pte programs: ``bare_process.py WHOSE MANIFEST STARTED_NS``.

``WHOSE`` is ``armlet``, for its engine ``executorch``, or ``executorch``, for ExecuTorch's own Python runtime, which is
built on torch. ``MANIFEST`` is a JSON file of ``programs.manifest``. Prints cold start and resident memory as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DECISIONS = 200


def with_armlet(encoders: dict[str, Any], aggregator: dict[str, Any]) -> Callable[[], object]:
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


def with_executorch(encoders: dict[str, Any], aggregator: dict[str, Any]) -> Callable[[], object]:
    import torch
    from executorch.runtime import Runtime

    def load(part: dict[str, Any]) -> Any:
        return Runtime.get().load_program(part["file"]).load_method("forward")

    programs = {name: load(part) for name, part in encoders.items()}
    windows = {name: torch.ones(part["inputs"]["window"]) for name, part in encoders.items()}
    last = load(aggregator)

    def decide() -> object:
        tokens = [programs[name].execute([window])[0] for name, window in windows.items()]
        return last.execute([torch.cat(tokens, dim=1)])

    return decide


def main(whose: str, manifest: str, started_ns: str) -> None:
    parts = json.loads(Path(manifest).read_text())
    decide = {"armlet": with_armlet, "executorch": with_executorch}[whose](**parts)
    decide()
    cold_start_s = (time.monotonic_ns() - int(started_ns)) / 1e9
    for _ in range(DECISIONS):
        decide()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    print(json.dumps({"cold_start_s": cold_start_s, "resident_bytes": pages * os.sysconf("SC_PAGE_SIZE")}))


if __name__ == "__main__":
    main(*sys.argv[1:])
