"""What the page of a live run may ask for: recordings, and new classes."""

from __future__ import annotations

import asyncio
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


class RunControls:
    """Carries out what a page asks for."""

    def __init__(self, run: Run, path: str, engine: str | None, recorder: Recorder) -> None:
        """Of one run.

        Args:
            run: The run.
            path: The bundle's, as it was given to the run.
            engine: As it was given to the run.
            recorder: The run's.
        """
        self._run, self._path, self._engine, self._recorder = run, path, engine, recorder
        self._learning = False

    @property
    def recording(self) -> str:
        """Where the recording is written that goes on now; empty if there is none."""
        return str(self._recorder.path or "")

    @property
    def can_enrol(self) -> bool:
        """Whether the bundle in use can learn classes."""
        return self._run.opened.bundle.manifest.bank is not None

    def record(self) -> str:
        """Begin a recording in the folder that the run was started in.

        Raises:
            DataError: One goes on already, or the file cannot be made.
        """
        path = Path(f"armlet-{datetime.now():%Y%m%d-%H%M%S}.mcap").absolute()
        self._run.start_recording(self._recorder, path)
        return f"Recording to {path}."

    def stop(self) -> str:
        """End the recording.

        Raises:
            DataError: There is none.
        """
        path = self._recorder.stop()
        if self._recorder.problem:
            return f"{self._recorder.problem} {self._recorder.lost} packets and decisions are lost."
        return f"Recorded in {path}."

    async def enrol(self, name: str, seconds: float) -> str:
        """Learn a class from the windows of the last so many seconds, while decisions go on.

        Raises:
            EnrolmentError: It cannot be learned; the classes are as they were.
        """
        from ..model import check_name

        bundle = self._run.opened.bundle
        check_name(name, bundle.manifest)
        windows = self._run.core.recent(seconds)
        if not windows:
            raise EnrolmentError("there was no window with a sensor in it to learn from: wait for one")
        if self._learning:
            raise EnrolmentError("another class is being learned: try again in a moment")
        self._learning = True
        try:
            example, layer, known = await asyncio.to_thread(self._learn, bundle, name, windows)
        finally:
            self._learning = False
        if self._run.opened.bundle.digest == bundle.digest:
            self._run.core.set_layer(layer)
        said = f"Learned '{name}' from {example.windows} window{'s' if example.windows > 1 else ''}."
        if known is not None:
            said += f" But the model is sure that all of this is '{known}', and it will not be told from that."
        return said

    def _learn(self, bundle: Bundle, name: str, windows: list[dict[str, Float32]]) -> tuple[Example, Layer, str | None]:
        """In a thread, on a model of its own: the run's serves one thread, and has decisions to make."""
        from ..model import Bank, BundleModel, change_layer, make_example, taken_for
        from .open_bundle import layer_path

        model = BundleModel.from_bundle(bundle, self._engine)
        try:
            example = make_example(model, Bank(bundle.manifest, bundle.read), windows, "live")
            known = taken_for(model, windows)
        finally:
            model.close()
        path = layer_path(self._path, bundle.digest)
        layer = change_layer(path, bundle.digest, bundle.manifest, lambda layer: layer.enrol(name, example))
        return example, layer, known
