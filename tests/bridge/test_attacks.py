"""Attacks on a board, by the names of The Update Framework (specification 1.0.33, section 1.5.2), and on the container.

Each comes the way an attacker's file would: offered to the board's agent, part by part, and installed. Each is refused
with a sentence of its own, and leaves the board's slot as it was.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from armlet_bridge.boards import environment as setup
from armlet_bridge.boards.ssh import PREFIX
from armlet_runtime.bundle import keys, trust
from armlet_runtime.bundle.bundle_writer import write_bundle
from armlet_runtime.bundle.container import DOMAIN, MAGIC, MAX_FRONT, MAX_HEADER, Front, open_bundle, open_front
from armlet_runtime.bundle.dsse import MAX_BYTES, open_envelope
from armlet_runtime.bundle.manifest import MAX_RELEASE, GoldenRef
from armlet_runtime.bundle.manifest_file import encode_manifest
from armlet_runtime.bundle.trust import KIND, Trust, TrustSet, next_set, trusted_keys
from armlet_runtime.errors import ArmletError, BundleError, DeployError, SignatureError
from armlet_runtime.install import frame_sizes
from armlet_runtime.install.agent import Agent
from armlet_runtime.install.agent_protocol import RESULTS, NoMemoryError, NoRoomError, UnsupportedError
from armlet_runtime.install.slots import SlotState
from armlet_runtime.modalities import Modality
from armlet_runtime.model.bundle_model import load_array

from ..runtime.test_bundle import MEMBERS, entry, tiny_manifest

OWNER, SECOND, THIEF = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in range(21, 24))
RELEASE = 5
"""What the board has had."""


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Agent:
    """A board that trusts its owner and has had release 5."""
    monkeypatch.setenv("ARMLET_HOME", str(tmp_path / "board" / "home"))
    keys.trust(OWNER.public_key())
    agent = Agent(tmp_path / "board")
    agent.slot.mkdir()
    state = SlotState({}, {keys.key_id(OWNER.public_key()): RELEASE})
    (agent.slot / "state.json").write_bytes(msgspec.json.encode(state))
    return agent


def bundle(members: dict[str, bytes] = MEMBERS, signers: tuple[Ed25519PrivateKey, ...] = (OWNER,), **of: Any) -> bytes:
    """A bundle as armlet makes them; of the next release, unless said otherwise."""
    manifest = msgspec.structs.replace(tiny_manifest(), **{"release": RELEASE + 1, **of})
    path = Path(os.environ["ARMLET_HOME"]) / "made.armlet"
    write_bundle(path, manifest, members, signers)
    data = path.read_bytes()
    path.unlink()
    return data


def by_hand(entries: list[dict[str, Any]] | bytes, members: bytes, signers: tuple[Ed25519PrivateKey, ...]) -> bytes:
    """A container put together by hand, signed validly."""
    raw = entries if isinstance(entries, bytes) else json.dumps({"schema": 1, "members": entries}).encode()
    head = MAGIC + struct.pack("<I", len(raw)) + raw
    digest = hashlib.sha256(DOMAIN + head).digest()
    signed = b"".join(key.public_key().public_bytes_raw() + key.sign(digest) for key in signers)
    return head + bytes([len(signers)]) + signed + members


def parts(data: bytes) -> tuple[bytes, bytes, Front]:
    """The header with its length, the signatures, and what the bundle says."""
    front = open_front(data, "the attacker's copy", None)
    (length,) = struct.unpack_from("<I", data, len(MAGIC))
    body = len(MAGIC) + 4 + length
    return data[:body], data[body : body + 1 + data[body] * 96], front


def everything(members: dict[str, bytes] = MEMBERS, **of: Any) -> dict[str, bytes]:
    manifest = msgspec.structs.replace(tiny_manifest(), **{"release": RELEASE + 1, **of})
    return {"manifest.json": encode_manifest(manifest)} | members


def signed(members: dict[str, bytes]) -> bytes:
    """By the owner, whatever the members are: what a stolen machine of the owner could sign."""
    return by_hand([entry(name, data) for name, data in members.items()], b"".join(members.values()), (OWNER,))


def with_header(data: bytes, change: Callable[[list[dict[str, Any]]], None]) -> bytes:
    """The bundle with its header changed and the signatures left as they were."""
    head, signatures, _ = parts(data)
    header = json.loads(head[len(MAGIC) + 4 :])
    change(header["members"])
    raw = json.dumps(header, separators=(",", ":")).encode()
    return MAGIC + struct.pack("<I", len(raw)) + raw + signatures + data[len(head) + len(signatures) :]


def with_member(data: bytes, name: str, content: bytes) -> bytes:
    """The bundle with other bytes where a member lies."""
    head, signatures, front = parts(data)
    at = len(head) + len(signatures)
    for member in front.members:
        if member.name == name:
            return data[:at] + content + data[at + member.size :]
        at += member.size
    raise AssertionError(name)


# --- attacks with a whole file -------------------------------------------------------------------------------------


def arbitrary_install_unsigned() -> bytes:
    head, signatures, _ = parts(bundle({**MEMBERS, "e": b"malware"}))
    return head + b"\0" + bundle({**MEMBERS, "e": b"malware"})[len(head) + len(signatures) :]


def arbitrary_install_under_the_owners_signature() -> bytes:
    _, signatures, _ = parts(bundle())
    mine = bundle({**MEMBERS, "e": b"malware"}, (THIEF,))
    head, own, _ = parts(mine)
    return head + signatures + mine[len(head) + len(own) :]


def wrong_key() -> bytes:
    return bundle(signers=(THIEF,))


def one_key_where_two_are_needed() -> bytes:
    trust.install(next_set(trusted_keys(), [OWNER.public_key(), SECOND.public_key()], 2, [OWNER, SECOND]), "rotation")
    return bundle(signers=(OWNER,))


def one_key_twice_where_two_are_needed() -> bytes:
    trust.install(next_set(trusted_keys(), [OWNER.public_key(), SECOND.public_key()], 2, [OWNER, SECOND]), "rotation")
    members = everything()
    entries = [entry(name, data) for name, data in members.items()]
    return by_hand(entries, b"".join(members.values()), (OWNER, OWNER))


def rollback() -> bytes:
    return bundle(release=RELEASE - 1)


def freeze() -> bytes:
    return bundle(created="2026-01-01T00:00:00Z", expires="2026-02-01T00:00:00Z")


def fast_forward() -> bytes:
    return signed(everything(release=MAX_RELEASE + 1))


def mix_and_match_of_members() -> bytes:
    """A program of another bundle that the owner has signed, too, of the same length."""
    other = {**MEMBERS, "e": b"ENCODER"}
    return with_member(bundle(), "e", other["e"])


def mix_and_match_of_manifests() -> bytes:
    """This bundle's members under the next one's manifest; both are signed, and the manifests are equally long."""
    head, signatures, front = parts(bundle())
    newer = everything(version="2")["manifest.json"]
    assert len(newer) == front.members[0].size
    return head + signatures + newer + bundle()[len(front.data) :]


def extra_member_behind_the_end() -> bytes:
    return bundle() + b"malware"


def extra_member_in_the_header() -> bytes:
    return with_header(bundle() + b"malware", lambda members: members.append(entry("x", b"malware")))


def extra_member_that_the_manifest_does_not_name() -> bytes:
    return signed(everything() | {"x": b"malware"})


def missing_member() -> bytes:
    return signed({name: data for name, data in everything().items() if name != "e"})


def missing_manifest() -> bytes:
    return signed(MEMBERS)


def renamed_member() -> bytes:
    def rename(members: list[dict[str, Any]]) -> None:
        (encoder,) = (member for member in members if member["name"] == "e")
        encoder["name"] = "f"

    return with_header(bundle(), rename)


def swapped_members() -> bytes:
    """Encoder and windows are seven bytes each."""
    return with_member(with_member(bundle(), "e", MEMBERS["w"]), "w", MEMBERS["e"])


def truncated_member() -> bytes:
    return with_member(bundle(), "e", MEMBERS["e"][:-1])


def endless_header() -> bytes:
    return MAGIC + struct.pack("<I", 0xFFFFFFFF) + b" " * 10_000


def endless_manifest() -> bytes:
    return by_hand([{"name": "manifest.json", "size": 1 << 60, "sha256": "0" * 64}], b"", (OWNER,))


def path_traversal() -> bytes:
    return signed(everything() | {"../../home/trusted/thief.pub": b"key"})


def absolute_path() -> bytes:
    return signed(everything() | {"/etc/cron.d/armlet": b"* * * * * root sh"})


def duplicate_names() -> bytes:
    members = everything()
    entries = [*(entry(name, data) for name, data in members.items()), entry("e", b"malware")]
    return by_hand(entries, b"".join(members.values()) + b"malware", (OWNER,))


def huge_header() -> bytes:
    raw = b'{"schema": 1, "members": [' + b" " * MAX_HEADER + b"]}"
    return by_hand(raw, b"", (OWNER,))


def nested_header() -> bytes:
    return by_hand(b'{"schema": 1, "members": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"", (OWNER,))


def zip_bomb_in_a_bundles_place() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model", bytes(10_000_000))
    return stream.getvalue()


def manifest_that_asks_for_a_million_runs() -> bytes:
    many = tuple(Modality(f"m{number}", ("x",), "g", 2.0) for number in range(20))
    return signed(everything(modalities=many))


ATTACKS: dict[Callable[[], bytes], str] = {
    arbitrary_install_unsigned: "is not signed; only a bundle that a trusted key has signed is taken",
    arbitrary_install_under_the_owners_signature: "no valid signature by the key .* header or a signature was changed",
    wrong_key: "is signed by the key [0-9a-f]{16}, which is not trusted here",
    one_key_where_two_are_needed: "and 2 of the keys .* must sign it",
    one_key_twice_where_two_are_needed: "is signed by the same key twice; each key counts once",
    rollback: r"t 1 is of release 4, and this slot has had release 5: going back needs",
    freeze: "t 1 has expired at 2026-02-01T00:00:00Z",
    fast_forward: "the release must be 0 to 9007199254740991",
    mix_and_match_of_members: "the part 'e' arrived with other contents than were signed",
    mix_and_match_of_manifests: "the member 'manifest.json' is corrupt, or was taken from another bundle",
    extra_member_behind_the_end: "7 bytes after its end",
    extra_member_in_the_header: "has no valid signature by the key",
    extra_member_that_the_manifest_does_not_name: "holds the member 'x', which its manifest does not name",
    missing_member: "names the member 'e', which is not in the bundle",
    missing_manifest: "has no member 'manifest.json' in the first place",
    renamed_member: "has no valid signature by the key",
    swapped_members: "the part 'e' arrived with other contents than were signed",
    truncated_member: "the part 'e' arrived with other contents than were signed",
    endless_header: "claims a header of 4294967295 bytes, more than the 1048576 allowed",
    endless_manifest: "has a manifest of 1152921504606846976 bytes, more than the 1048576 allowed",
    path_traversal: r"has the member name '\.\./\.\./home/trusted/thief\.pub', which is not a plain relative path",
    absolute_path: "has the member name '/etc/cron.d/armlet', which is not a plain relative path",
    duplicate_names: "has the member 'e' twice",
    huge_header: "claims a header of 1048604 bytes, more than the 1048576 allowed",
    nested_header: "has a header that does not follow schema 1|has a corrupt header",
    zip_bomb_in_a_bundles_place: "is not an armlet bundle",
    manifest_that_asks_for_a_million_runs: "has 20 modalities, more than the 12 whose subsets can be tried",
}
"""What makes the attacker's file, and what the board's agent says of it."""

ON_THE_FILE = {
    mix_and_match_of_members: "the member 'e' is corrupt, or was taken from another bundle",
    swapped_members: "the member 'e' holds what belongs into 'w': they were swapped",
    truncated_member: r"is truncated: \d+ of \d+ bytes are there",
}
"""Where the whole file is at hand, and more can be said."""


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"
    }


def bring(agent: Agent, data: bytes) -> None:
    """What an attacker who may talk to the agent does: offer, send every part as the file has it, install."""
    wanted = {part.sha256 for part in agent.offer(data[:MAX_FRONT], None)}
    front = open_front(data, "the attacker's copy", None)
    at = len(front.data)
    for member in front.members[1:]:
        part = data[at : at + member.size]
        at += member.size
        if member.sha256 in wanted:
            agent.put(member.sha256, 0, part)
            wanted.remove(member.sha256)  # equal members go over the link once
    if at != len(data):
        agent.put(front.members[-1].sha256, front.members[-1].size, data[at:])
    for update in agent.install(front.digest, None):
        if update.state == 0:
            raise DeployError(update.message)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_attack_on_the_agent(attack: Callable[[], bytes], board: Agent) -> None:
    data = attack()
    before = contents(board.slot)
    words = ATTACKS[attack]
    if attack is extra_member_behind_the_end:  # parts go one by one over a link; bytes behind the last have no place
        words = "the part 'w' has 7 of 7 bytes here"
    with pytest.raises(ArmletError, match=words) as caught:
        bring(board, data)
    assert "\n" not in str(caught.value)
    assert contents(board.slot) == before


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_attack_with_a_file(attack: Callable[[], bytes], board: Agent, tmp_path: Path) -> None:
    """The same file, brought to the board by hand: ``armlet deploy FILE file:SLOT``."""
    from armlet_runtime.install.slot_deploy import deploy_to_slot

    path = tmp_path / "attack.armlet"
    path.write_bytes(attack())
    before = contents(board.slot)
    with pytest.raises(BundleError, match=ON_THE_FILE.get(attack, ATTACKS[attack])):
        deploy_to_slot(path, board.slot)
    assert contents(board.slot) == before


def test_the_same_file_untouched_gets_through(board: Agent) -> None:
    """Only the golden run stops this bundle, whose programs are words: nothing else is wrong with it."""
    with pytest.raises(DeployError, match="the golden run could not be made"):
        bring(board, bundle())


# --- attacks that are more than a file ------------------------------------------------------------------------------


def test_endless_data_in_a_member_is_refused_for_want_of_room(board: Agent) -> None:
    members = everything()
    entries = [entry(name, data) for name, data in members.items() if name != "e"]
    data = by_hand([*entries, {"name": "e", "size": 1 << 60, "sha256": "0" * 64}], b"".join(members.values()), (OWNER,))
    with pytest.raises(NoRoomError, match=r"needs 2305843009214"):
        board.offer(data, None)


def test_endless_data_in_a_part_is_refused_at_its_first_byte_too_many(board: Agent) -> None:
    front = open_front(bundle(), "b", None)
    board.offer(front.data, None)
    encoder = next(member for member in front.members if member.name == "e")
    board.put(encoder.sha256, 0, b"encod")
    with pytest.raises(DeployError, match="the part 'e' has 5 of 7 bytes here"):
        board.put(encoder.sha256, 5, b"ers")


def test_endless_data_in_a_frame_is_refused_unread() -> None:
    with pytest.raises(DeployError, match="does not speak armlet's protocol"):
        frame_sizes(struct.pack("!II", 2, 0xFFFFFFFF))


def test_endless_data_in_a_signed_document_is_refused_unread() -> None:
    with pytest.raises(SignatureError, match="more than the 65536 of any signed document"):
        open_envelope(b" " * (MAX_BYTES + 1), KIND, TrustSet, [((OWNER.public_key(),), 1)], "x")


def test_endless_data_from_a_device_is_refused_unread(board: Agent) -> None:
    with pytest.raises(BundleError, match="/dev/zero is not a plain file"):
        open_bundle(Path("/dev/zero"), trusted_keys())


def test_mix_and_match_of_parts_of_two_offers(board: Agent) -> None:
    """The parts of one bundle do not go into the one that was offered since."""
    old, new = bundle(), bundle({**MEMBERS, "e": b"ENCODER"})
    first, second = open_front(old, "b", None), open_front(new, "b", None)
    board.offer(first.data, None)
    board.offer(second.data, None)
    encoder = next(member for member in first.members if member.name == "e")
    with pytest.raises(DeployError, match=f"was not offered a part {encoder.sha256[:12]}"):
        board.put(encoder.sha256, 0, MEMBERS["e"])
    with pytest.raises(DeployError, match="was last offered"):
        next(board.install(first.digest, None))


def test_fast_forward_by_a_thief_ends_with_the_key(board: Agent) -> None:
    """A release of 2^53 - 1 by a stolen key locks the board for its owner no longer than that key is trusted."""
    keys.trust(THIEF.public_key())
    state = SlotState({}, {keys.key_id(THIEF.public_key()): MAX_RELEASE})
    (board.slot / "state.json").write_bytes(msgspec.json.encode(state))
    with pytest.raises(BundleError, match=f"has had release {MAX_RELEASE}"):
        board.offer(bundle(), None)
    trust.install(next_set(trusted_keys(), [OWNER.public_key()], 1, [OWNER]), "rotation")
    assert board.offer(bundle(), None)


def test_fast_forward_of_the_trust_set_is_refused(board: Agent) -> None:
    far = next_set(Trust((OWNER.public_key(),), version=MAX_RELEASE - 1), [OWNER.public_key()], 1, [OWNER])
    with pytest.raises(SignatureError, match=f"is version {MAX_RELEASE} of the trust set.* give version 1"):
        trust.install(far, "the rotation")


def test_freeze_of_a_board_without_a_clock(board: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """It believes that it is 1970, and is neither locked out nor held back to what its newest bundle has outlived."""
    monkeypatch.setattr(time, "time", lambda: 100.0)
    board.offer(bundle(created="2026-01-01T00:00:00Z", expires="2026-02-01T00:00:00Z"), None)
    state = msgspec.structs.replace(SlotState({}), newest=1_780_000_000.0)  # 2026-05-28
    (board.slot / "state.json").write_bytes(msgspec.json.encode(state))
    with pytest.raises(BundleError, match="has expired at 2026-02-01"):
        board.offer(bundle(created="2026-01-01T00:00:00Z", expires="2026-02-01T00:00:00Z"), None)


def odd_archives() -> Iterator[tuple[str, bytes]]:
    for name, kind, points_to in (
        ("escape", tarfile.SYMTYPE, "/etc"),
        ("passwd", tarfile.LNKTYPE, "../../../etc/passwd"),
        ("null", tarfile.CHRTYPE, ""),
        ("../outside", tarfile.REGTYPE, ""),
        ("/absolute", tarfile.REGTYPE, ""),
    ):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz") as archive:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, points_to
            archive.addfile(member)
        yield name, stream.getvalue()


@pytest.mark.parametrize(
    ("name", "archive"), list(odd_archives()), ids=["link", "hard link", "device", "traversal", "root"]
)
def test_links_and_path_traversal_in_a_boards_environment(name: str, archive: bytes, tmp_path: Path) -> None:
    """The only archive that a board unpacks: its own environment, at setup."""
    done = subprocess.run(
        [sys.executable, "-c", setup.INSTALL], input=b'{"digest": "' + b"0" * 64 + b'"}\n' + archive,
        capture_output=True, env={**os.environ, "HOME": str(tmp_path)}, check=False,
    )  # fmt: skip
    assert done.returncode != 0 and f"the archive holds {name}".encode() in done.stderr
    assert not (tmp_path / PREFIX / "venv").exists()
    assert not list(tmp_path.rglob("outside")) and not Path("/absolute").exists()


def npy(shape: tuple[int, ...]) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(16)


@pytest.mark.parametrize("shape", [(1 << 40, 4), (1 << 30, 4), (1 << 62, 4), (2, 4)])
def test_bomb_in_an_array(shape: tuple[int, ...]) -> None:
    """Sixteen bytes that promise terabytes: nothing is allocated for them."""
    with pytest.raises(BundleError, match=r"the member 'm' promises \d+ bytes of numbers and holds 16"):
        load_array(npy(shape), "m", (None, 4))


def test_zip_bomb_in_an_array(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m.npy", npy((1 << 30,)) + bytes(10_000_000))
    with pytest.raises(BundleError, match=r"the member 'm' is not an \.npy array"):
        load_array(stream.getvalue(), "m", (None, 4))


# --- preflight: what a board refuses before anything is sent ---------------------------------------------------------


def test_preflight_knows_the_boards_memory_and_engines(board: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tiny_manifest().engines["litert"]
    strange: dict[str, Any] = {"engines": {"abacus": programs}, "golden": GoldenRef({"hr": "w"}, {"abacus": "l"})}
    with pytest.raises(UnsupportedError, match=r"none of the bundle's engines can be used .*abacus: unknown"):
        board.offer(bundle(**strange), None)
    assert board.offer(bundle(), None)
    monkeypatch.setattr("armlet_runtime.install.agent.PROCESS_BYTES", 1 << 60)
    with pytest.raises(NoMemoryError, match=r"MB of memory free, and trying this bundle on litert takes 11529"):
        board.offer(bundle(), None)
    assert RESULTS[NoMemoryError] == 3 and RESULTS[UnsupportedError] == 6, "as LwM2M numbers them"


@pytest.mark.parametrize("left", [b"", b"{", b'{"state": 9, "result": 1}', b"\xff"])
def test_a_note_of_another_armlet_locks_nobody_out(left: bytes, board: Agent) -> None:
    (board.prefix / "update.json").write_bytes(left)
    assert board.hello()["update"].message == "the last update is unknown: update.json cannot be read"
    assert board.offer(bundle(), None) and board.record.read().state == 1
