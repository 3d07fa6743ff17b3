"""Writers of the views' lines: straight to standard output, or through a thread, so that nothing waits for a reader.

A terminal over SSH, a pager or a pipe can stop taking what is written (Ctrl-S, a lost network, ``| less``), and then
``write`` blocks. A live run must go on deciding meanwhile, so it writes through a :class:`BackgroundWriter`.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from typing import Protocol

MAX_WAITING = 1000
"""Lines that wait for a stalled reader; further ones are dropped and counted."""


class LineWriter(Protocol):
    """Takes the lines of a view."""

    def line(self, text: str) -> None:
        """Write a line to standard output."""

    def error(self, text: str) -> None:
        """Write a line to standard error."""

    def close(self) -> None:
        """Return when everything is written."""


class DirectWriter:
    """Writes at once, and blocks as long as the reader does: for runs that may wait, such as a replay at full speed."""

    def line(self, text: str) -> None:
        """Write a line to standard output."""
        print(text, flush=True)

    def error(self, text: str) -> None:
        """Write a line to standard error."""
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Do nothing: everything is written already."""


class BackgroundWriter:
    """Writes in a thread of its own.

    Attributes:
        dropped: Lines dropped since the last report, because too many waited.
    """

    def __init__(self, out: int = 1, err: int = 2) -> None:
        """``out`` and ``err``: file descriptors."""
        self.dropped = 0
        self._out, self._err = out, err
        self._encoding = sys.stdout.encoding or "utf-8"
        self._waiting: deque[tuple[int, str]] = deque()
        self._news = threading.Condition()
        self._closed = False
        self._broken_pipe: BrokenPipeError | None = None
        # A daemon: a reader that never reads again must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="armlet-output", daemon=True)
        self._thread.start()

    def line(self, text: str) -> None:
        """Write a line to standard output.

        Raises:
            BrokenPipeError: The reader is gone.
        """
        self._put(self._out, text)

    def error(self, text: str) -> None:
        """Write a line to standard error.

        Raises:
            BrokenPipeError: The reader is gone.
        """
        self._put(self._err, text)

    def close(self) -> None:
        """Return when everything is written; waits for a stalled reader, as any program that ends does.

        Later lines are written at once.
        """
        with self._news:
            self._report_dropped()
            self._closed = True
            self._news.notify()
        self._thread.join()

    def _put(self, file: int, text: str) -> None:
        with self._news:
            if self._broken_pipe is not None:
                raise self._broken_pipe
            if self._closed:
                self._write(file, text)
                return
            if len(self._waiting) >= MAX_WAITING:
                self.dropped += 1
                return
            self._report_dropped()
            self._waiting.append((file, text))
            self._news.notify()

    def _report_dropped(self) -> None:
        if self.dropped:
            self._waiting.append((self._err, f"armlet: {self.dropped} lines were dropped while nobody read them"))
            self.dropped = 0

    def _run(self) -> None:
        while True:
            with self._news:
                while not self._waiting:
                    if self._closed:
                        return
                    self._news.wait()
                file, text = self._waiting.popleft()
            try:
                self._write(file, text)
            except BrokenPipeError as error:
                with self._news:
                    self._broken_pipe = error
                return
            except OSError:
                # The terminal is gone (EIO after a hang-up): nobody can read this, and the run has other outputs.
                return

    def _write(self, file: int, text: str) -> None:
        write_all(file, f"{text}\n".encode(self._encoding, "replace"))


def write_all(file: int, data: bytes) -> None:
    """Write to a file descriptor past Python's buffers, whose lock a blocked thread would keep.

    Raises:
        OSError: The descriptor cannot be written to.
    """
    while data:
        data = data[os.write(file, data) :]
