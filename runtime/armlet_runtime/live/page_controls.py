"""Commands of the page of a live run: recordings, and new classes."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import EnrolmentError

if TYPE_CHECKING:
    from ..arrays import Float32
    from ..bundle import Bundle
    from ..model import Example, Layer
    from ..signals import Recorder
    from .run import Run

log = logging.getLogger(__name__)


class RunControls:
    """Carries out the commands of a page."""

    def __init__(self, run: Run, path: str, engine: str | None, recorder: Recorder) -> None:
        """Control a run with its recorder; ``path`` and ``engine``: of the bundle, as given to the run."""
        self._run, self._path, self._engine, self._recorder = run, path, engine, recorder
        self._learning = False

    @property
    def recording(self) -> str:
        """Path of the present recording; empty if no recording is being written."""
        return str(self._recorder.path or "")

    @property
    def can_enrol(self) -> bool:
        """Whether the bundle in use can learn classes."""
        return self._run.opened.bundle.manifest.bank is not None

    def record(self) -> str:
        """Begin a recording in the working directory of the run.

        Raises:
            DataError: A recording is being written already, or the file cannot be created.
        """
        path = Path(f"armlet-{datetime.now():%Y%m%d-%H%M%S}.mcap").absolute()
        self._run.start_recording(self._recorder, path)
        log.info("recording to %s, by a command of the page", path)
        return f"Recording to {path}."

    def stop(self) -> str:
        """End the recording.

        Raises:
            DataError: No recording is being written.
        """
        path = self._recorder.stop()
        log.info("the recording %s ended, by a command of the page", path)
        if self._recorder.problem:
            return f"{self._recorder.problem} {self._recorder.lost} packets and decisions are lost."
        return f"Recorded in {path}."

    async def enrol(self, name: str, seconds: float) -> str:
        """Learn a class from the windows of the last ``seconds``, while decisions go on.

        Raises:
            EnrolmentError: The class cannot be learned; the classes stay unchanged.
        """
        from ..model import check_name

        bundle = self._run.opened.bundle
        check_name(name, bundle.manifest)
        windows = self._run.core.recent(seconds)
        if not windows:
            raise EnrolmentError("no window with a sensor is there to learn from yet: wait until a sensor sends")
        if self._learning:
            raise EnrolmentError("another class is being learned: try again in a moment")
        self._learning = True
        try:
            example, layer, label = await asyncio.to_thread(self._learn, bundle, name, windows)
        finally:
            self._learning = False
        if self._run.opened.bundle.digest == bundle.digest:
            self._run.core.set_layer(layer)
        log.info("learned '%s' from %d windows", name, example.windows)
        sentence = f"Learned '{name}' from {example.windows} window{'s' if example.windows > 1 else ''}."
        if label is not None:
            sentence += f" But the model is sure that all of this is '{label}': the two will not be told apart."
        return sentence

    def _learn(self, bundle: Bundle, name: str, windows: list[dict[str, Float32]]) -> tuple[Example, Layer, str | None]:
        """Learn in a thread, on a separate model: that of the run serves one thread only."""
        from ..model import Bank, BundleModel, change_layer, make_example, taken_for
        from .open_bundle import layer_path

        model = BundleModel.from_bundle(bundle, self._engine)
        try:
            example = make_example(model, Bank(bundle.manifest, bundle.read), windows, "live")
            label = taken_for(model, windows)
        finally:
            model.close()
        path = layer_path(self._path, bundle.digest)
        layer = change_layer(path, bundle.digest, bundle.manifest, lambda layer: layer.enrol(name, example))
        return example, layer, label
