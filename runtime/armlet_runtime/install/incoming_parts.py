"""The members of an offered bundle as they arrive on a board.

Under the board's prefix::

    incoming/front       the beginning of the offered bundle, with its signatures and its manifest
    incoming/SHA256      members that have arrived; SHA256.part while they arrive
    incoming/model.armlet  the bundle assembled from them, until it is in the slot

Members of the slot's bundles are copied from there and need not be sent.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from ..bundle import Front, Member, open_bundle, read_front, trusted_keys
from ..errors import BundleError, CorruptBundleError, DeployError
from ..files import chunks, write_atomic
from .agent_protocol import NoRoomError
from .slot_deploy import RESERVE_BYTES
from .slots import BUNDLE, PLACES

INCOMING, FRONT = "incoming", "front"


class MissingPart(msgspec.Struct, frozen=True):
    """A member that must be sent.

    Attributes:
        sha256: Digest of its contents, by which it is named.
        size: Its size in bytes.
        have: Number of its first bytes that have arrived.
    """

    sha256: str
    size: int
    have: int


class IncomingParts:
    """The parts of an offered bundle."""

    def __init__(self, prefix: Path, slot: Path) -> None:
        """Keep the parts under ``prefix``, and use the members of the bundles in ``slot``."""
        self._folder = prefix / INCOMING
        self._prefix = prefix
        self._slot = slot

    def front(self) -> Front:
        """The beginning of the offered bundle.

        Raises:
            DeployError: Nothing was offered, or the offer is not trusted.
        """
        try:
            return read_front(self._folder / FRONT, trusted_keys())
        except BundleError as error:
            raise DeployError(f"the board was offered no bundle yet ({error})") from error

    def missing(self, front: Front) -> list[MissingPart]:
        """List the parts of a bundle that must still be sent.

        Raises:
            NoRoomError: The disk has no room for the parts and for the bundle assembled from them.
        """
        local = self._local_members()
        absent = {member.sha256: member for member in front.members[1:] if member.sha256 not in local}
        parts = [MissingPart(member.sha256, member.size, self._received(member)) for member in absent.values()]
        needs = sum(part.size - part.have for part in parts) + front.size + RESERVE_BYTES
        free = shutil.disk_usage(self._prefix).free
        if free < needs:
            raise NoRoomError(f"the board has {free / 1e6:.1f} MB free and needs {needs / 1e6:.1f} MB for this bundle")
        return parts

    def expect(self, front: Front) -> None:
        """Accept the parts of this bundle from now on, and remove those of other bundles."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self._folder / FRONT, front.data)
        names = {FRONT, *(name for member in front.members for name in (member.sha256, f"{member.sha256}.part"))}
        for path in self._folder.iterdir():
            if path.name not in names:
                path.unlink()

    def put(self, sha256: str, offset: int, data: bytes) -> int:
        """Append bytes to a part, and return how many of its bytes have arrived.

        Raises:
            DeployError: The part is not of the offered bundle, or the bytes do not follow those that have arrived.
            CorruptBundleError: The complete part differs from the signed part; it must be sent again from the start.
        """
        member = next((member for member in self.front().members if member.sha256 == sha256), None)
        if member is None:
            raise DeployError(f"the board was not offered a part {sha256[:12]}; offer the bundle again")
        have = self._received(member)
        if offset != have or have + len(data) > member.size:
            raise DeployError(f"the part '{member.name}' has {have} of {member.size} bytes here, not {offset}")
        path = self._folder / f"{sha256}.part"
        with path.open("ab") as file:
            file.write(data)
            if have + len(data) < member.size:
                return have + len(data)
            file.flush()
            os.fsync(file.fileno())
        digest = hashlib.sha256()
        for chunk in chunks(path):
            digest.update(chunk)
        if digest.hexdigest() != sha256:
            path.unlink()
            raise CorruptBundleError(
                f"the part '{member.name}' arrived with other contents than were signed; send it again"
            )
        path.replace(self._folder / sha256)
        return member.size

    def assemble(self, front: Front) -> Path:
        """Assemble the bundle from its parts, and return its file.

        Raises:
            DeployError: A part is missing. No file is left.
            OSError: The disk is full, or cannot be written to. No file is left.
        """
        path = self._folder / BUNDLE
        local = self._local_members()
        try:
            with path.open("wb") as file:
                file.write(front.data)
                for member in front.members[1:]:
                    received = self._folder / member.sha256
                    if received.exists():
                        file.writelines(chunks(received))
                    elif member.sha256 in local:
                        file.write(local[member.sha256]())
                    else:
                        raise DeployError(f"the part '{member.name}' is missing on the board; send the bundle again")
        except (DeployError, OSError):
            path.unlink(missing_ok=True)
            raise
        return path

    def clear(self) -> None:
        """Remove all parts."""
        shutil.rmtree(self._folder)

    def _received(self, member: Member) -> int:
        if (self._folder / member.sha256).exists():
            return member.size
        part = self._folder / f"{member.sha256}.part"
        return part.stat().st_size if part.exists() else 0

    def _local_members(self) -> dict[str, Callable[[], bytes]]:
        """Map the SHA-256 of each member of the slot's bundles to a function that reads it."""
        readers: dict[str, Callable[[], bytes]] = {}
        for place in PLACES:
            path = self._slot / place / BUNDLE
            if not path.exists():
                continue
            try:
                bundle = open_bundle(path, None)
            except BundleError:  # of a deploy that was cut off
                continue
            for name in bundle.sizes:
                readers[bundle.sha256(name)] = lambda bundle=bundle, name=name: bundle.read(name)  # type: ignore[misc]
        return readers
