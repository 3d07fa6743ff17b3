"""Classes that a board learns from an example: prototypes in embedding space, in a file beside the signed bundle.

**An example** is a few windows of something that the model does not know. Their embeddings, in every subset of the
modalities that were there, become prototypes. The bundle brings a *bank*: tokens of validation people's windows of the
classes that it knows. A prototype reaches :data:`REACH` of the way to the nearest window of the bank in its subset, so
that it takes none of them: what is new gets the room that is free, and where there is none, next to none. A window that
the model is sure of (:data:`SURE`) says nothing new and gives no prototype. Both numbers were chosen on HAPT's
validation people with the postural transitions as new classes (``benchmarks/enrolment.py``).

**The layer** is a JSON file for one bundle, named after its digest: a slot that goes back to an earlier bundle finds
that one's classes again. It lists changes, of which the last can be undone. It is not signed: whoever may write it may
add classes on this board, and can change nothing of the bundle.
"""

from __future__ import annotations

import fcntl
import glob
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from .deciding import softmax
from .engines.base import Float32
from .errors import BundleError, EnrolmentError, NotANumberError
from .files import write_atomic
from .live import LiveCore
from .manifest import UNKNOWN, Manifest
from .modalities import subset_name, subsets
from .model import BundleModel, load_array
from .recording import Packet
from .slots import SCHEME, bundle_path

SCHEMA = 1
REACH = 0.9
SURE = 0.95
MAX_WINDOWS = 16
"""Most windows of one example: what a file holds, and a hop compares with, stays small."""
MAX_NAME = 64


class Prototype(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One point in embedding space, and the distance up to which a window is of its class."""

    embedding: tuple[float, ...]
    radius: float


class Example(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one enrolment added.

    Attributes:
        source: ``live``, or the recording and the second in it.
        engine: What made the embeddings.
        windows: How many windows it is of.
        prototypes: Subset to its prototypes; a subset with a modality that was not there has none.
    """

    source: str
    engine: str
    windows: int
    prototypes: dict[str, tuple[Prototype, ...]]


class Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One change of a layer: an example for a class, or a class taken away with all its examples."""

    action: Literal["enrol", "remove"]
    name: str
    at: str
    """UTC, ISO 8601."""
    example: Example | None = None


class Layer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The classes that were enrolled for one bundle.

    Attributes:
        schema: 1.
        bundle: Digest of the bundle.
        revision: Counts up with every change and every undoing.
        changes: In order.
    """

    schema: int
    bundle: str
    revision: int = 0
    changes: tuple[Change, ...] = ()

    def classes(self) -> dict[str, list[Example]]:
        """Class to its examples, in the order in which the classes were enrolled."""
        found: dict[str, list[Example]] = {}
        for change in self.changes:
            if change.example is not None:
                found.setdefault(change.name, []).append(change.example)
            else:
                found.pop(change.name, None)
        return found

    def enrol(self, name: str, example: Example) -> Layer:
        """With one more example of a class."""
        return self._with((*self.changes, Change("enrol", name, _now(), example)))

    def remove(self, name: str) -> Layer:
        """Without a class.

        Raises:
            EnrolmentError: There is no such class.
        """
        if name not in self.classes():
            known = ", ".join(self.classes()) or "none"
            raise EnrolmentError(f"no class '{name}' was enrolled for this bundle; there are: {known}")
        return self._with((*self.changes, Change("remove", name, _now())))

    def undo(self) -> Layer:
        """Without the last change.

        Raises:
            EnrolmentError: There is none.
        """
        if not self.changes:
            raise EnrolmentError("nothing was enrolled for this bundle: there is nothing to undo")
        return self._with(self.changes[:-1])

    def _with(self, changes: tuple[Change, ...]) -> Layer:
        return msgspec.structs.replace(self, revision=self.revision + 1, changes=changes)


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def check_name(name: str, manifest: Manifest) -> None:
    """Refuse what cannot be the name of a new class.

    Raises:
        EnrolmentError: It is empty, too long, not printable, or taken.
    """
    if not name.strip() or len(name) > MAX_NAME or not name.isprintable():
        raise EnrolmentError(f"'{name}' cannot name a class: give 1 to {MAX_NAME} printable characters")
    if name in (*manifest.labels, UNKNOWN):
        raise EnrolmentError(f"'{name}' is a label of the bundle already: choose another name")


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


def left_behind(path: Path) -> list[str]:
    """Files beside a layer with classes that were enrolled for other bundles, which its bundle cannot use."""
    start = path.name.removesuffix(path.name.rpartition("enrolled-")[2])
    return sorted(other.name for other in path.parent.glob(f"{glob.escape(start)}*.json") if other != path)


def read_layer(path: Path, digest: str, manifest: Manifest) -> Layer:
    """The layer in a file; an empty one if there is no file.

    Raises:
        EnrolmentError: It cannot be read, is of another bundle, or does not fit the bundle's model.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Layer(SCHEMA, digest)
    except OSError as error:
        raise EnrolmentError(f"cannot read the enrolled classes in {path}: {error.strerror}") from error
    mend = "remove the file and enrol them again"
    try:
        layer = msgspec.json.decode(data, type=Layer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise EnrolmentError(f"{path} does not hold enrolled classes ({error}): {mend}") from error
    if layer.schema > SCHEMA:
        raise EnrolmentError(f"{path} is of schema {layer.schema}, and this armlet knows {SCHEMA}: update armlet")
    if layer.bundle != digest:
        raise EnrolmentError(f"the classes in {path} were enrolled for another bundle ({layer.bundle[:16]}): {mend}")
    names = [modality.name for modality in manifest.modalities]
    known = {subset_name(subset) for subset in subsets(names)}
    for name, examples in layer.classes().items():
        check_name(name, manifest)
        for example in examples:
            for subset, prototypes in example.prototypes.items():
                if subset not in known or not all(_fits(one, manifest.embedding_dim) for one in prototypes):
                    raise EnrolmentError(f"the class '{name}' in {path} does not fit the bundle's model: {mend}")
    return layer


def _fits(prototype: Prototype, size: int) -> bool:
    return (
        len(prototype.embedding) == size
        and all(map(math.isfinite, prototype.embedding))
        and 0 < prototype.radius < math.inf
    )


@contextmanager
def changing(path: Path, digest: str, manifest: Manifest) -> Iterator[Callable[[Layer], None]]:
    """Hold off all other changes to the layers in a folder; the function in the block writes the new layer.

    Raises:
        EnrolmentError: The file cannot be written; it is as it was.
    """
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise EnrolmentError(f"cannot keep enrolled classes in {path.parent}: {error.strerror}") from error

    def write(layer: Layer) -> None:
        try:
            write_atomic(path, msgspec.json.format(msgspec.json.encode(layer), indent=1) + b"\n")
        except OSError as error:
            raise EnrolmentError(f"cannot write the enrolled classes to {path}: {error.strerror}") from error

    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield write
    finally:
        os.close(folder)


class LayerWatch:
    """Notices that the classes enrolled for a bundle were changed by another process."""

    def __init__(self) -> None:
        self._seen: tuple[Path, int, int] | None = None

    def look(self, path: Path, digest: str, manifest: Manifest) -> Layer | None:
        """The layer, if its file is another than at the look before; None at the first look.

        Raises:
            EnrolmentError: As for :func:`read_layer`; not again until the file changes once more.
        """
        try:
            stat = path.stat()
            now = (path, stat.st_ino, stat.st_mtime_ns)
        except OSError:
            now = (path, 0, 0)
        before, self._seen = self._seen, now
        return None if before is None or before == now else read_layer(path, digest, manifest)


class Bank:
    """Windows of the classes that a bundle knows: what an example is held against."""

    def __init__(self, manifest: Manifest, read: Callable[[str], bytes]) -> None:
        """Read a bundle's bank.

        Args:
            manifest: Of the bundle.
            read: Gives a member's bytes.

        Raises:
            EnrolmentError: The bundle has none.
            BundleError: The member is not what the manifest promises.
        """
        if manifest.bank is None:
            raise EnrolmentError("this bundle cannot learn classes: it was exported by an earlier armlet; export again")
        names = [modality.name for modality in manifest.modalities]
        rows = load_array(read(manifest.bank), manifest.bank, (None, len(names) * manifest.token_dim), np.float16)
        if not len(rows) or not np.isfinite(rows).all():
            raise BundleError(f"the member '{manifest.bank}' must hold at least one window, and finite numbers only")
        self.tokens: dict[str, Float32] = dict(zip(names, np.split(rows, len(names), axis=1), strict=True))
        self.windows = len(rows)


def make_example(model: BundleModel, bank: Bank, windows: Sequence[Mapping[str, Float32]], source: str) -> Example:
    """The prototypes of an example.

    Args:
        model: The bundle's model.
        bank: The bundle's bank.
        windows: Of each window, modality name to token (token_dim,) for the modalities that were there.
        source: See :class:`Example`.

    Raises:
        EnrolmentError: There is no window with a modality.
        EngineError: The engine failed.
    """
    # Of too many windows, some that are spread evenly.
    count = min(len(windows), MAX_WINDOWS)
    chosen = [windows[index * len(windows) // count] for index in range(count)]
    names = [modality.name for modality in model.manifest.modalities]
    prototypes = {}
    for subset in subsets(names):
        there = [tokens for tokens in chosen if all(name in tokens for name in subset)]
        points = _new_points(model, subset, there)
        if points:
            known = np.stack([
                model.aggregate({name: bank.tokens[name][row] for name in subset})[1] for row in range(bank.windows)
            ])  # fmt: skip
            prototypes[subset_name(subset)] = tuple(
                Prototype(
                    tuple(point.tolist()),
                    # Not 0 where a window of the bank is the very same: a distance is divided by it.
                    max(REACH * float(np.sqrt(np.square(known - point).sum(axis=1).min())), 1e-6),
                )
                for point in points
            )
    if not prototypes:
        raise EnrolmentError("there was no window with a sensor in it to learn from")
    return Example(source, model.engine.name, len(chosen), prototypes)


def recorded_windows(
    model: BundleModel, packets: Sequence[Packet], at_s: float, length_s: float | None
) -> list[dict[str, Float32]]:
    """The windows of an example in a recording, cut as in a live run.

    Args:
        model: The bundle's model.
        packets: Of the recording, in order of arrival.
        at_s: Seconds after the first packet at which the example begins.
        length_s: How long it is; None for one window, which is also the least.

    Returns:
        Of each window that lies in it, modality name to token.

    Raises:
        DataError: The packets are out of order.
        EngineError: The engine failed.
    """
    core = LiveCore(model)
    window = model.manifest.window
    begin_ns = packets[0].arrival_ns + round(at_s * 1e9)
    # A window more or less, because the grid of windows lies where the run's first sample put it.
    length_s = max(length_s or 0.0, window.length_s) + window.hop_s
    end_ns = begin_ns + round(length_s * 1e9)
    found: list[dict[str, Float32]] = []
    for decision in (one for packet in packets for one in core.packet(packet)):
        if decision.window_end_ns > end_ns:
            break
        if decision.window_end_ns - round(window.length_s * 1e9) >= begin_ns:
            found += core.recent(0.0)
    return found


def taken_for(model: BundleModel, windows: Sequence[Mapping[str, Float32]]) -> str | None:
    """The class of the bundle that the model is sure all windows of an example are, so that it shows nothing new.

    Args:
        model: The bundle's model.
        windows: As for :func:`make_example`.
    """
    names = [modality.name for modality in model.manifest.modalities]
    found = [
        one for tokens in windows for one in _decided(model, tuple(name for name in names if name in tokens), [tokens])
    ]
    labels = {label for sure, label, _ in found if sure > SURE}
    return labels.pop() if len(labels) == 1 and all(sure > SURE for sure, _, _ in found) else None


def _new_points(model: BundleModel, subset: tuple[str, ...], windows: Sequence[Mapping[str, Float32]]) -> list[Float32]:
    """Embeddings of the windows that the model is not sure of; of the one it is least sure of if there are none."""
    found = _decided(model, subset, windows)
    unsure = [embedding for sure, _, embedding in found if sure <= SURE]
    return unsure or [embedding for _, _, embedding in sorted(found, key=lambda one: one[0])[:1]]


def _decided(
    model: BundleModel, subset: tuple[str, ...], windows: Sequence[Mapping[str, Float32]]
) -> list[tuple[float, str, Float32]]:
    """Of each window that has a number for a score: probability of the best class, its label, and the embedding."""
    confidence = model.manifest.confidence
    temperature = confidence.temperature[subset_name(subset)] if confidence is not None else 1.0
    found = []
    for tokens in windows:
        try:
            logits, embedding = model.aggregate({name: tokens[name] for name in subset})
        except NotANumberError:
            continue
        label = model.manifest.labels[int(logits.argmax())]
        found.append((max(softmax(logits.tolist(), temperature)), label, embedding))
    return found
