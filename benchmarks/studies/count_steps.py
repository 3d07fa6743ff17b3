"""On an emulated board: the calls of ``incremental.py``, between two ``getpgid`` each for the counting plugin.

``count_steps.py FOLDER SHAPE PRECISION ENGINE CALLS``
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from benchmarks.studies.incremental import calls

WARM_UP = 3


def main(folder: str, shape: str, precision: str, engine: str, count: str) -> None:
    for call in calls(Path(folder), shape, precision, engine).values():
        for _ in range(WARM_UP):
            call()
        os.getpgid(0)
        for _ in range(int(count)):
            call()
        os.getpgid(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
