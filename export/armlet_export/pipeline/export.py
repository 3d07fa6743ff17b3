"""The export: a trained float model becomes a signed bundle, and nothing is written before all of it was proven."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from armlet_runtime.errors import ExportError

from ..backends import BACKENDS
from .lowered import lower
from .proven import prove
from .quantised import quantise
from .report import ExportReport, make_report
from .signed import sign
from .trained import Journal, NoProgress, Progress, Trained


def export_model(
    trained: Trained,
    engines: Sequence[str],
    key: Ed25519PrivateKey,
    work: Path,
    out: Path,
    progress: Progress | None = None,
) -> ExportReport:
    """Make, prove and sign a bundle.

    Args:
        trained: What to export.
        engines: Some of :data:`armlet_export.backends.BACKENDS`.
        key: Signing key.
        work: Folder for the checkpoint; a second call continues from it.
        out: The bundle; written last, and only if every stage succeeded.
        progress: Where to show how far it is; None for nowhere.

    Raises:
        ExportError: A program could not be made, or failed its proof.
    """
    unknown = [engine for engine in engines if engine not in BACKENDS]
    if unknown or not engines:
        raise ExportError(
            f"there are no programs for {', '.join(unknown) or 'no engine'}; choose of {', '.join(BACKENDS)}"
        )
    journal = Journal(progress or NoProgress())
    quantised = quantise(trained, work, journal)
    lowered = lower(quantised, engines, journal)
    proven = prove(lowered, work, journal)
    bundle = sign(proven, key, work, out, journal)
    return make_report(bundle, journal.seconds)
