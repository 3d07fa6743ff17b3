"""The recording of a run as an output: in one file, or in a folder for a run that goes on for months."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import DataError
from .outputs import Output

if TYPE_CHECKING:
    from ..decisions import Decision
    from ..signals import Packet, Recorder
    from .output_folder import OutputFolder
    from .run import Run

log = logging.getLogger(__name__)

RETRY_NS = 60_000_000_000
"""Pause after a part of a recording could not be written, before the next part is tried."""


class RecordingOutput(Output):
    """Writes packets and decisions to the recording, if any is being written; in a folder, in successive parts."""

    def __init__(self, recorder: Recorder, run: Run, folder: OutputFolder | None = None) -> None:
        """Write nothing yet; ``folder``: of the parts, None for a recording of one file."""
        self._recorder, self._run, self._folder = recorder, run, folder
        self._problem = self._reported = ""
        self._retry_ns = 0

    def packet(self, packet: Packet) -> None:
        """Write a packet."""
        self._recorder.write(packet)

    def decision(self, decision: Decision) -> None:
        """Write a decision, and begin the next part if this part is full or cannot be written."""
        if self._recorder.path is not None:
            self._recorder.decision(decision.decided_ns, decision.to_json())
        self._problem = self._recorder.problem or self._problem
        if self._folder is not None and self._is_over(self._folder) and decision.decided_ns >= self._retry_ns:
            self._begin_part(self._folder, decision.decided_ns)

    def _is_over(self, folder: OutputFolder) -> bool:
        path = self._recorder.path
        if path is None:  # a part could not be begun, or a person ended the recording, which is final
            return self._retry_ns > 0
        return bool(self._recorder.problem) or not path.exists() or path.stat().st_size >= folder.part_bytes

    def _begin_part(self, folder: OutputFolder, now_ns: int) -> None:
        failed = bool(self._recorder.problem) or self._recorder.path is None
        if self._recorder.path is not None:
            self._recorder.stop(now_ns)
        try:
            self._run.start_recording(self._recorder, folder.next_file())
            self._problem = self._reported = ""
        except (OSError, DataError) as error:
            log.info("the next part of the recording cannot be begun: %s", error)
            self._problem, failed = str(error), True
        # A disk that is full now is not asked again at every decision.
        self._retry_ns = now_ns + RETRY_NS if failed else 0

    def news(self) -> Sequence[str]:
        """Report that the recording can no longer be written."""
        before, self._reported = self._reported, self._problem
        return () if self._problem in ("", before) else (self._problem,)

    def finish(self, ended_ns: int) -> None:
        """End the recording."""
        if self._recorder.path is not None:
            self._recorder.stop(ended_ns)
        self._problem = self._recorder.problem or self._problem
