"""A bundle, opened and verified for a live run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..bundle import Bundle, decode_certificate
from ..install import SCHEME, bundle_path, current_place, open_settled
from ..model import BundleModel, Policy, programs_of, read_layer
from .sd_notify import Notifier

LOOK_S = 0.5
"""How often a service looks for the first bundle of its slot."""


@dataclass(frozen=True)
class Opened:
    """A bundle for a live run.

    Attributes:
        model: The model of the bundle on an engine.
        bundle: The bundle.
        policy: Rules by which scores become decisions: with the certificate for the engine that runs, and the classes
            enrolled for the bundle.
    """

    model: BundleModel
    bundle: Bundle
    policy: Policy


def open_model(
    bundle: str, keys: Sequence[Path] = (), engine: str | None = None, policy: Policy | None = None
) -> Opened:
    """Verify a bundle and load its programs.

    Args:
        bundle: A file, or ``file:FOLDER`` for a slot.
        keys: Public keys to trust; empty for those of this home.
        engine: Engine to run on; None for the bundle's first that is usable here.
        policy: The person's floor and threshold; None for the bundle's own rules.

    Raises:
        BundleError: The bundle cannot be trusted or used.
        DeployError: The slot cannot be taken back to its previous bundle.
        EngineError: The engine cannot be used here.
        EnrolmentError: The classes enrolled for it cannot be read.
    """
    return load_programs(bundle, open_settled(bundle, keys), engine, policy or Policy())


def wait_for_bundle(path: str, manager: Notifier) -> None:
    """Wait in a service for the first bundle of its slot; the service manager would restart a failure without end.

    Outside a service, or for the file of a bundle, return at once.
    """
    if not path.startswith(SCHEME) or not manager.is_managed:
        return
    folder = Path(path.removeprefix(SCHEME))
    if current_place(folder) is None:
        manager.ready()
        manager.status(f"waits for a bundle in {path}: deploy one")
    while current_place(folder) is None:
        manager.alive()
        time.sleep(LOOK_S)


def load_programs(path: str, bundle: Bundle, engine: str | None, policy: Policy) -> Opened:
    """Load the programs of a verified bundle and the classes enrolled for it; ``path``: its file or slot.

    The other arguments and the errors are those of :func:`open_model`.
    """
    layer = read_layer(layer_path(path, bundle.digest), bundle.digest, bundle.manifest)
    model = BundleModel.from_bundle(bundle, engine)
    certificate = decode_certificate(bundle.read(bundle.manifest.certificate))
    stored_under, _ = programs_of(bundle.manifest, model.engine.name)
    return Opened(model, bundle, policy.for_bundle(certificate, stored_under, layer))


def layer_path(bundle: str, digest: str) -> Path:
    """The file of the classes enrolled for a bundle: in its slot, or beside its file.

    Args:
        bundle: BUNDLE on the command line: a file, or ``file:FOLDER`` for a slot.
        digest: Digest of the bundle.

    Raises:
        BundleError: The slot holds no bundle.
    """
    if bundle.startswith(SCHEME):
        return Path(bundle.removeprefix(SCHEME)) / f"enrolled-{digest[:16]}.json"
    path = bundle_path(bundle)
    return path.with_name(f"{path.stem}.enrolled-{digest[:16]}.json")
