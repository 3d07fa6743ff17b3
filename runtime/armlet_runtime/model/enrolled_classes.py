"""The classes that were enrolled for a bundle: a file beside it.

A layer is a JSON file for one bundle, named after its digest: a slot that goes back to an earlier bundle finds the
classes of that bundle again. It lists changes, of which the last can be undone. It is not signed: a person who can
write it can add classes on this board, and can change nothing of the bundle. :mod:`armlet_runtime.model.prototypes`
explains examples.
"""

from __future__ import annotations

import fcntl
import glob
import math
import os
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import msgspec

from ..bundle import UNKNOWN, Manifest
from ..errors import EnrolmentError
from ..files import write_atomic
from ..modalities import subset_name, subsets

SCHEMA = 1
MAX_NAME = 64


class Prototype(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One point in embedding space, and the distance up to which a window is of its class."""

    embedding: tuple[float, ...]
    radius: float


class Example(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The result of one enrolment.

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
        examples: dict[str, list[Example]] = {}
        for change in self.changes:
            if change.example is not None:
                examples.setdefault(change.name, []).append(change.example)
            else:
                examples.pop(change.name, None)
        return examples

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
            EnrolmentError: The class or the change does not exist.
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


def left_behind(path: Path) -> list[str]:
    """Files beside a layer with classes that were enrolled for other bundles, which its bundle cannot use."""
    start = path.name.removesuffix(path.name.rpartition("enrolled-")[2])
    return sorted(other.name for other in path.parent.glob(f"{glob.escape(start)}*.json") if other != path)


def read_layer(path: Path, digest: str, manifest: Manifest) -> Layer:
    """The layer in a file; an empty layer if the file does not exist.

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
                if subset not in known or not all(_fits(prototype, manifest.embedding_dim) for prototype in prototypes):
                    raise EnrolmentError(f"the class '{name}' in {path} does not fit the bundle's model: {mend}")
    return layer


def _fits(prototype: Prototype, size: int) -> bool:
    return (
        len(prototype.embedding) == size
        and all(map(math.isfinite, prototype.embedding))
        and 0 < prototype.radius < math.inf
    )


def change_layer(path: Path, digest: str, manifest: Manifest, change: Callable[[Layer], Layer]) -> Layer:
    """Write what ``change`` makes of the layer in a file, holding off all other changes to the layers in its folder.

    Raises:
        EnrolmentError: The layer cannot be read (see :func:`read_layer`), changed or written; it stays unchanged.
    """
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise EnrolmentError(f"cannot keep enrolled classes in {path.parent}: {error.strerror}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        layer = change(read_layer(path, digest, manifest))
        write_atomic(path, msgspec.json.format(msgspec.json.encode(layer), indent=1) + b"\n")
    except OSError as error:
        raise EnrolmentError(f"cannot write the enrolled classes to {path}: {error.strerror}") from error
    finally:
        os.close(folder)
    return layer


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
