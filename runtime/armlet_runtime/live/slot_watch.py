"""Watches the slot of a run: takes up another bundle put into use there, and classes changed by 'armlet enrol'."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ..errors import ArmletError
from ..install import SCHEME, Follower
from ..model import LayerWatch
from .core import NOT_A_NUMBER
from .open_bundle import Opened, layer_path, load_programs
from .outputs import Output

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..decisions import Decision
    from ..model import Policy
    from ..signals import Recorder
    from .run import Run

log = logging.getLogger(__name__)

_Candidate: TypeAlias = "tuple[Bundle, Opened | ArmletError]"
"""A verified bundle with its loaded programs, or why they do not load."""

LOOK_NS = 200_000_000
"""Time between two looks at the slot."""

RESTART = 75
"""Exit code of a run whose slot has a bundle for other signals or windows now: start it again (EX_TEMPFAIL)."""


class SlotWatch(Output):
    """Takes up what is new in a slot, and reports to its probation how a run fares with its bundle.

    Bundles are verified and loaded in a thread, because the event loop stamps packets with their arrival times and must
    not wait. They are taken up on the event loop, between two windows.
    """

    def __init__(self, run: Run, path: str, keys: Sequence[Path], engine: str | None, recorder: Recorder) -> None:
        """Watch the slot ``path`` (``file:FOLDER``) of a run; the other arguments are as given to the run.

        Nothing is taken up during a recording, which is of a single bundle.

        Raises:
            BundleError: The slot cannot be written to.
        """
        self._run, self._path, self._engine, self._recorder = run, path, engine, recorder
        self._follower = Follower(Path(path.removeprefix(SCHEME)), run.opened.bundle, keys)
        self._layers = LayerWatch()
        self._looked_ns: int | None = None
        self._opening: asyncio.Task[_Candidate | None] | None = None
        self._problem = ""

    def tick(self, now_ns: int) -> None:
        """Take up what is new in the slot, every :data:`LOOK_NS`. Needs a running event loop.

        Raises:
            SystemExit: The bundle there is for other signals or windows.
        """
        if self._looked_ns is None:
            self._looked_ns = now_ns
        if self._recorder.path is not None or now_ns - self._looked_ns < LOOK_NS:
            return
        self._looked_ns = now_ns
        self._watch_bundle()
        self._take_classes()

    def _watch_bundle(self) -> None:
        run = self._run
        try:
            if self._opening is None:
                if self._follower.may_differ(run.core.start_ns is not None):
                    self._opening = asyncio.ensure_future(asyncio.to_thread(self._open, run.core.policy))
            elif self._opening.done():
                opening, self._opening = self._opening, None
                self._take_up(opening.result())
                self._problem = ""
        except ArmletError as error:
            self._follower.failed(str(error))
            if self._problem != str(error):
                self._problem = str(error)
                run.problem(f"{error}; going on with {run.opened.model.manifest.version}")
        self._follower.report()

    def _open(self, policy: Policy) -> _Candidate | None:
        """Verify and load the bundle in use, if it is a new bundle. Runs in a thread.

        Raises:
            ArmletError: As of :meth:`~armlet_runtime.install.Follower.look`.
        """
        began = time.monotonic()
        bundle = self._follower.look()
        if bundle is None:
            return None
        name = f"{bundle.manifest.name} {bundle.manifest.version}"
        try:
            opened = load_programs(self._path, bundle, self._engine, policy)
        except ArmletError as error:
            log.info("%s is in use in %s and does not load: %s", name, self._path, error)
            return bundle, error
        log.info("%s is in use in %s; verified and loaded in %.2f s", name, self._path, time.monotonic() - began)
        return bundle, opened

    def _take_up(self, candidate: _Candidate | None) -> None:
        """Decide with the bundle from the next window on.

        Raises:
            ArmletError: The bundle cannot be used.
            SystemExit: The bundle is for other signals or windows.
        """
        if candidate is None:
            return
        bundle, opened = candidate
        self._follower.follow(bundle)
        if isinstance(opened, ArmletError):
            raise opened
        if not self._run.core.can_become(opened.model):
            # The run's links and grid do not fit; the service manager starts the run again.
            log.info("%s is for other signals or windows: ending to be started again", self._path)
            self._follower.report(restarting=True)
            raise SystemExit(RESTART)
        self._run.become(opened)

    def _take_classes(self) -> None:
        bundle = self._run.opened.bundle
        try:
            layer = self._layers.look(layer_path(self._path, bundle.digest), bundle.digest, bundle.manifest)
        except ArmletError as error:
            self._run.problem(f"{error}; going on with the present classes")
        else:
            if layer is not None:
                self._run.core.set_layer(layer)

    def decision(self, decision: Decision) -> None:
        """Count a decision for the probation, which asks for decisions that rest on a sensor."""
        if decision.label is not None and decision.latency_s is not None:
            self._follower.decided(decision.latency_s)
        elif decision.reason != NOT_A_NUMBER:
            self._follower.idled()

    def close(self) -> None:
        """End the watch; a bundle that is being loaded is not taken up."""
        if self._opening is not None and not self._opening.cancel() and not self._opening.cancelled():
            self._opening.exception()  # asked for, so that asyncio reports no error that nobody retrieved
        self._follower.close()
