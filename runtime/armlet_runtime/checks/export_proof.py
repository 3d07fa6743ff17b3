"""The run of a bundle, or of its draft, in a fresh process without torch: the proof behind export, deploy and tests.

::

    python -m armlet_runtime.checks export_proof DRAFT_OR_BUNDLE INPUT.npz OUTPUT.npz --engine litert

A draft is a folder with ``manifest.json`` and the member files that it names, unsigned. ``INPUT.npz`` has for every
modality an array (n, channels, samples) float32 of *normalised* windows, as the golden windows are. ``OUTPUT.npz`` gets

- ``logits`` (subsets, n, labels) and ``embeddings`` (subsets, n, embedding_dim) float32, the subsets in the order of
  :func:`armlet_runtime.modalities.subsets`;
- ``tokens_MODALITY`` (n, token_dim) float32;
- ``report``: a string, JSON of :class:`ProofReport`.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from ..arrays import Float32
from ..bundle import MANIFEST, Manifest, decode_manifest, open_bundle, trusted_keys
from ..errors import BundleError, DataError, EngineError, MissingMemberError
from ..files import write_atomic
from ..machine import resident_bytes
from ..modalities import subset_name, subsets
from ..model import BundleModel, run_encoders, run_subsets, what_failed


class ProofReport(msgspec.Struct, frozen=True):
    """Figures of the run.

    Attributes:
        engine: Engine name, with its ``version`` and ``detail``.
        subsets: Names of the subsets, in the order of the logits.
        windows: Windows run.
        load_s: Time to load the engine and all programs.
        run_s: Time of all windows in all subsets.
        resident_bytes: Memory of this process at the end.
        failed: Properties that the programs lack, of :func:`armlet_runtime.model.golden_run.what_failed`.
        steps: Largest difference of step programs from programs of whole windows; None if no encoder is incremental.
    """

    engine: str
    version: str
    detail: str
    subsets: tuple[str, ...]
    windows: int
    load_s: float
    run_s: float
    resident_bytes: int
    failed: tuple[str, ...]
    steps: float | None


class Draft:
    """A folder with ``manifest.json`` and the members that it names: a bundle before it is signed."""

    def __init__(self, folder: Path) -> None:
        """Read the manifest.

        Raises:
            BundleError: The manifest is missing or not valid.
        """
        self._folder = folder
        self.manifest = decode_manifest(self.read(MANIFEST))

    def read(self, member: str) -> bytes:
        """The bytes of a member.

        Raises:
            MissingMemberError: There is no such file.
            BundleError: It cannot be read.
        """
        try:
            return (self._folder / member).read_bytes()
        except FileNotFoundError:
            raise MissingMemberError(f"the draft {self._folder} has no member '{member}'") from None
        except OSError as error:
            raise BundleError(f"cannot read the member '{member}' of {self._folder}: {error.strerror}") from error


def read_windows(path: Path, manifest: Manifest) -> dict[str, Float32]:
    """Read an input file: modality name to (n, channels, samples) float32, the same n for all.

    Raises:
        DataError: The file cannot be read, or does not hold such windows.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            windows: dict[str, Float32] = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read windows from {path}: {error}") from error
    names = [modality.name for modality in manifest.modalities]
    if set(windows) != set(names) or len({len(array) for array in windows.values()}) != 1:
        raise DataError(f"{path} must hold as many windows of each of {', '.join(names)}; it holds {list(windows)}")
    return windows


def prove(source: Path, windows_path: Path, output: Path, engine: str, keys: Sequence[Path] = ()) -> ProofReport:
    """Run all subsets in this process, and write ``output``.

    Raises:
        ArmletError: The draft or bundle, its programs, the engine or the input cannot be used.
    """
    draft = Draft(source) if source.is_dir() else open_bundle(source, trusted_keys(keys))
    windows = read_windows(windows_path, draft.manifest)
    start = time.perf_counter()
    model = BundleModel(draft.manifest, draft.read, engine)
    loaded = time.perf_counter()
    tokens = run_encoders(model, windows)
    logits, embeddings = run_subsets(model, windows, tokens)
    done = time.perf_counter()
    failed, steps = what_failed(model, windows)
    report = ProofReport(
        engine=model.engine.name,
        version=model.engine.version,
        detail=model.engine.detail,
        subsets=tuple(subset_name(s) for s in subsets([modality.name for modality in draft.manifest.modalities])),
        windows=logits.shape[1],
        load_s=loaded - start,
        run_s=done - loaded,
        resident_bytes=resident_bytes(),
        failed=failed,
        steps=steps,
    )
    buffer = io.BytesIO()
    np.savez(
        buffer,
        logits=logits,
        embeddings=embeddings,
        report=np.array(msgspec.json.encode(report).decode()),
        **{f"tokens_{name}": array for name, array in tokens.items()},  # type: ignore[arg-type]
    )
    write_atomic(output, buffer.getvalue())
    return report


def main(arguments: Sequence[str]) -> int:
    """The command; always 0.

    Raises:
        ArmletError: As :func:`prove`, and where torch was imported.
    """
    parser = argparse.ArgumentParser(
        prog="python -m armlet_runtime.checks export_proof", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("source", type=Path, help="draft folder, or bundle")
    parser.add_argument("input", type=Path, help=".npz of normalised windows, one array a modality")
    parser.add_argument("output", type=Path, help=".npz to write")
    parser.add_argument("--engine", required=True, help="engine to run on")
    parser.add_argument("--key", type=Path, action="append", default=[], help="trusted public key, for a bundle")
    args = parser.parse_args(arguments)
    prove(args.source, args.input, args.output, args.engine, args.key)
    if "torch" in sys.modules:
        args.output.unlink()
        raise EngineError("torch was imported during the run, so it proves nothing for a board")
    return 0
