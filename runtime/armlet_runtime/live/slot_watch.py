"""Follows the slot of a run: another bundle in use there, and classes that 'armlet enrol' has changed, are taken up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ArmletError
from ..install import SCHEME, Follower
from ..model import LayerWatch
from .core import NOT_A_NUMBER
from .open_bundle import layer_path, load_programs
from .outputs import Output

if TYPE_CHECKING:
    from ..decisions import Decision
    from ..signals import Recorder
    from .run import Run

LOOK_NS = 200_000_000
"""How often the slot is looked at."""

RESTART = 75
"""Exit code of a run whose slot has a bundle for other signals or windows now: start it again (EX_TEMPFAIL)."""


class SlotWatch(Output):
    """Looks at a slot, and reports to its probation how a run fares with its bundle."""

    def __init__(self, run: Run, path: str, keys: Sequence[Path], engine: str | None, recorder: Recorder) -> None:
        """For one run.

        Args:
            run: The run; it decides with the bundle that is in use in the slot.
            path: ``file:FOLDER``.
            keys: Public keys to trust; empty for those of this home.
            engine: As it was given to the run.
            recorder: The run's: a recording is of one bundle, so nothing is taken up while one goes on.

        Raises:
            BundleError: The slot cannot be written to.
        """
        self._run, self._path, self._engine, self._recorder = run, path, engine, recorder
        self._follower = Follower(Path(path.removeprefix(SCHEME)), run.opened.bundle, keys)
        self._layers = LayerWatch()
        self._looked_ns: int | None = None

    def tick(self, now_ns: int) -> None:
        """Take up what is new in the slot, if it is time to look.

        Raises:
            SystemExit: The bundle there is for other signals or windows.
        """
        if self._looked_ns is None:
            self._looked_ns = now_ns
        if self._recorder.path is not None or now_ns - self._looked_ns < LOOK_NS:
            return
        self._looked_ns = now_ns
        self._take_bundle()
        self._take_classes()

    def _take_bundle(self) -> None:
        run = self._run
        try:
            bundle = self._follower.look(run.core.start_ns is not None)
            if bundle is not None:
                opened = load_programs(self._path, bundle, self._engine, run.core.policy)
                if not run.core.can_become(opened.model):
                    # What this run was started with does not fit; whoever keeps it going starts it anew.
                    self._follower.report(restarting=True)
                    raise SystemExit(RESTART)
                run.become(opened)
        except ArmletError as error:
            self._follower.failed(str(error))
            run.problem(f"{error}; going on with {run.opened.model.manifest.version}")
        self._follower.report()

    def _take_classes(self) -> None:
        bundle = self._run.opened.bundle
        try:
            layer = self._layers.look(layer_path(self._path, bundle.digest), bundle.digest, bundle.manifest)
        except ArmletError as error:
            self._run.problem(f"{error}; going on with the classes that there are")
        else:
            if layer is not None:
                self._run.core.set_layer(layer)

    def decision(self, decision: Decision) -> None:
        """Count a decision for the probation, which asks for some that rest on a sensor."""
        if decision.label is not None and decision.latency_s is not None:
            self._follower.decided(decision.latency_s)
        elif decision.reason != NOT_A_NUMBER:
            self._follower.idled()

    def close(self) -> None:
        """Follow no longer."""
        self._follower.close()
