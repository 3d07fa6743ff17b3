"""The tool chains' own output, kept out of the user's terminal and in a log file.

torchao, executorch, litert-torch and their C++ parts write warnings and notes straight to the process's file
descriptors, so nothing short of redirecting those catches them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def quiet(log: Path) -> Iterator[TextIO]:
    """Within the block, whatever the process prints is appended to ``log``; yields the standard output from outside."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    try:
        with (
            log.open("ab", buffering=0) as sink,
            os.fdopen(os.dup(saved[0]), "w", encoding="utf-8", errors="replace", buffering=1) as terminal,
        ):
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
            yield terminal
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)
