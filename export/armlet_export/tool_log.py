"""The output of the tool chains goes to a log file, and not to the user's terminal.

torchao 0.18, executorch 1.5.1 and litert-torch 0.10.0 write some hundred lines of warnings and progress during an
export. Part of it comes from C++ (absl, XNNPACK, MLIR) and from processes that they start, which write to the file
descriptors 1 and 2 and know nothing of ``sys.stderr`` or ``logging``. So the descriptors themselves are redirected.

That holds for the whole process, all of its threads included: only the main thread of a command may use it, around the
part of its work that runs tool chains.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def output_to_log(log: Path) -> Iterator[TextIO]:
    """Within the block, whatever the process prints is appended to ``log``; yields the standard output from outside.

    Raises:
        OSError: The log cannot be written; nothing is redirected then.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        sink = stack.enter_context(log.open("ab", buffering=0))
        terminal = stack.enter_context(
            os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace", buffering=1)  # line by line
        )
        for descriptor in (1, 2):
            saved = os.dup(descriptor)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, descriptor)
        stack.callback(_flush)  # before the descriptors are given back: what was printed in the block is the log's
        _flush()
        for descriptor in (1, 2):
            os.dup2(sink.fileno(), descriptor)
        yield terminal


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
