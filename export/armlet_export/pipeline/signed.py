"""The last stage: the signed bundle, whose file ran once more."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from armlet_runtime.bundle import key_id, write_bundle
from armlet_runtime.errors import ExportError
from armlet_runtime.files import write_atomic
from armlet_runtime.model import FLOAT_TOLERANCE

from ..proof import run_engine
from .proven import Proven
from .trained import Journal


@dataclass(frozen=True)
class Bundle:
    """A finished bundle: its file, its size, its digest, and the key that signed it."""

    proven: Proven
    path: Path
    bytes: int
    digest: str
    key_id: str


def sign(proven: Proven, key: Ed25519PrivateKey, work: Path, out: Path, journal: Journal) -> Bundle:
    """Sign a bundle, run it on every engine, and only then write it.

    Args:
        proven: The stage before.
        key: Signing key.
        work: Folder for the bundle until it has run.
        out: The bundle's file.
        journal: Gets the seconds.

    Raises:
        ExportError: The finished bundle does not run, or gives other logits than its draft.
    """
    with tempfile.TemporaryDirectory(dir=work) as folder:
        with journal.time("sign"):
            finished, public = Path(folder) / "finished.armlet", Path(folder) / "signer.pub"
            digest = write_bundle(finished, proven.draft.manifest, proven.draft.members, [key])
            public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        engines = proven.golden_logits
        with journal.time("last run"), journal.progress.stage("Run the finished bundle", len(engines)) as advance:
            for engine, expected in engines.items():
                logits = run_engine(finished, proven.golden, engine, public).logits
                difference = float(np.abs(logits - expected).max())
                if not difference <= FLOAT_TOLERANCE:
                    raise ExportError(
                        f"the logits of the finished bundle on {engine} differ from those of its draft by "
                        f"{difference:.2g}; at most {FLOAT_TOLERANCE:g} is allowed"
                    )
                advance()
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, finished.read_bytes())
    return Bundle(proven, out, out.stat().st_size, digest, key_id(key.public_key()))
