"""Decisions as JSON lines: in one file, or in a folder for a run that goes on for months."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..errors import UsageError
from ..files import Lines
from .outputs import Output
from .sinks import SinkReport

if TYPE_CHECKING:
    from ..decisions import Decision
    from .output_folder import OutputFolder

log = logging.getLogger(__name__)


class DecisionLines(Output):
    """Writes the decisions of a replay to a file."""

    def __init__(self, path: Path) -> None:
        """Begin the file.

        Raises:
            UsageError: The file cannot be written.
        """
        self._lines = Lines(path)

    def decision(self, decision: Decision) -> None:
        """Write one line.

        Raises:
            UsageError: The line cannot be written, as on a full disk.
        """
        self._lines.write(decision.to_json())

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


class LiveDecisionLines(Output):
    """Writes the decisions of a live run. What cannot be written is lost, counted and reported; the run goes on."""

    def __init__(self, place: Path | OutputFolder, embeddings: bool = True) -> None:
        """Begin the file; in a folder, with the first decision.

        Args:
            place: The file, or the folder that takes a file for each start and each part.
            embeddings: Whether a line has its decision's embedding, which is most of the line.

        Raises:
            UsageError: The file cannot be written. (A file in a folder that cannot be written now may be later.)
        """
        self._folder = None if isinstance(place, Path) else place
        self._lines = Lines(place) if isinstance(place, Path) else None
        self._name = str(place if isinstance(place, Path) else place.path)
        self._embeddings = embeddings
        self._written = self._lost = 0
        self._problem = self._reported = self._newest_problem = ""

    def decision(self, decision: Decision) -> None:
        """Write one line, if that is possible."""
        if not self._embeddings:
            decision = msgspec.structs.replace(decision, embedding=())
        try:
            self._file().write(decision.to_json())
        except (OSError, UsageError) as error:
            self._lost += 1
            if not self._problem:
                log.info("a decision is not written: %s", error)
            self._problem = self._newest_problem = str(error)
        else:
            self._written += 1
            self._problem = ""

    def _file(self) -> Lines:
        """The file for the next line: a new file at the start and after each full part."""
        if self._lines is not None and (self._folder is None or self._lines.size < self._folder.part_bytes):
            return self._lines
        assert self._folder is not None
        following = Lines(self._folder.next_file())
        if self._lines is not None:
            self._lines.close()
        self._lines = following
        return following

    def news(self) -> Sequence[str]:
        """Report that decisions cannot be written, or can be written again."""
        before, self._reported = self._reported, self._problem
        if self._problem == before:
            return ()
        if self._problem:
            return (f"{self._problem}: decisions are made, and not written there",)
        return (f"{self._name}: decisions are written again",)

    def reports(self) -> list[SinkReport]:
        """The number of lost lines; empty if none was lost."""
        if not self._lost:
            return []
        return [SinkReport(self._name, self._written, self._lost, self._newest_problem)]

    def close(self) -> None:
        """Close the file."""
        if self._lines is not None:
            self._lines.close()
