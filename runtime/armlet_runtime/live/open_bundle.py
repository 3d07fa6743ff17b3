"""All of a bundle that a live run needs, opened and verified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..bundle import Bundle, CertificateRow, decode_certificate
from ..errors import UsageError
from ..install import SCHEME, bundle_path, open_settled
from ..model import BundleModel, Layer, programs_of, read_layer


@dataclass(frozen=True)
class Opened:
    """A bundle for a live run.

    Attributes:
        model: Its model, on one engine.
        bundle: Itself.
        certified: Subset to its row of the certificate, for the engine that runs.
        layer: The classes that were enrolled for it.
    """

    model: BundleModel
    bundle: Bundle
    certified: dict[str, CertificateRow]
    layer: Layer


def open_model(bundle: str, keys: Sequence[Path] = (), engine: str | None = None, floor: float | None = None) -> Opened:
    """Verify a bundle and load its programs.

    Args:
        bundle: A file, or ``file:FOLDER`` for a slot.
        keys: Public keys to trust; empty for those of this home.
        engine: Engine to run on; None for the bundle's first that is usable here.
        floor: The macro-F1 that will be asked for, which is checked; None for none.

    Raises:
        BundleError: The bundle cannot be trusted or used.
        DeployError: The slot cannot be taken back to what it had.
        EngineError: The engine cannot be used here.
        EnrolmentError: The classes enrolled for it cannot be read.
        UsageError: The floor is no share.
    """
    if floor is not None and not 0 <= floor <= 1:
        raise UsageError(f"--floor {floor:g}: macro-F1 lies between 0 and 1")
    opened = open_settled(bundle, keys)
    model, certified = certified_model(opened, engine)
    return Opened(model, opened, certified, enrolled(bundle, opened))


def certified_model(bundle: Bundle, engine: str | None) -> tuple[BundleModel, dict[str, CertificateRow]]:
    """A bundle's model, and subset to its row of the bundle's certificate, for the engine that runs.

    Raises:
        BundleError: The bundle cannot be used.
        EngineError: The engine cannot be used here.
    """
    model = BundleModel.from_bundle(bundle, engine)
    certificate = decode_certificate(bundle.read(bundle.manifest.certificate))
    stored_under, _ = programs_of(bundle.manifest, model.engine.name)
    return model, {row.subset: row for row in certificate.rows if row.engine == stored_under}


def enrolled(path: str, bundle: Bundle) -> Layer:
    """The classes that were enrolled for a bundle; ``path``: a file, or ``file:FOLDER`` for a slot.

    Raises:
        EnrolmentError: They cannot be read.
    """
    return read_layer(layer_path(path, bundle.digest), bundle.digest, bundle.manifest)


def layer_path(bundle: str, digest: str) -> Path:
    """Where the layer of a bundle lies: in its slot, or beside its file.

    Args:
        bundle: What a person gave as BUNDLE: a file, or ``file:FOLDER`` for a slot.
        digest: Of the bundle.

    Raises:
        BundleError: The slot holds no bundle.
    """
    if bundle.startswith(SCHEME):
        return Path(bundle.removeprefix(SCHEME)) / f"enrolled-{digest[:16]}.json"
    path = bundle_path(bundle)
    return path.with_name(f"{path.stem}.enrolled-{digest[:16]}.json")
