"""Bundles: the format, and that nothing but what was signed is ever taken."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from armlet_runtime.bundle import container as bundle_module
from armlet_runtime.bundle.bundle_writer import write_bundle
from armlet_runtime.bundle.container import DOMAIN, MAGIC, MAX_HEADER, _verify, open_bundle
from armlet_runtime.bundle.manifest import MANIFEST_SCHEMA, EnginePrograms, GoldenRef, Manifest, ProgramRef, StepProgram
from armlet_runtime.bundle.manifest_file import decode_manifest, encode_manifest, named_members
from armlet_runtime.bundle.trust import Trust
from armlet_runtime.errors import (
    BundleError,
    CorruptBundleError,
    MissingMemberError,
    NewerSchemaError,
    SchemaError,
    SignatureError,
    TrailingBytesError,
    TruncatedBundleError,
    UntrustedKeyError,
)
from armlet_runtime.modalities import Modality
from armlet_runtime.windows import Normalisation, WindowSpec

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
TRUSTED = Trust((KEY.public_key(),))


def tiny_manifest() -> Manifest:
    tokens, results = {"tokens": (1, 2)}, {"logits": (1, 1), "embedding": (1, 1)}
    encoder = ProgramRef("e", {"window": (1, 1, 2)}, {"token": (1, 2)}, "int8")
    return Manifest(
        schema=MANIFEST_SCHEMA,
        name="t",
        version="1",
        created="2026-01-01T00:00:00Z",
        made_with={},
        modalities=(Modality("hr", ("rate",), "bpm", 2.0),),
        window=WindowSpec(1.0, 0.5),
        normalisation={"hr": Normalisation((70.0,), (10.0,))},
        labels=("rest",),
        token_dim=2,
        embedding_dim=1,
        engines={"litert": EnginePrograms({"hr": encoder}, ProgramRef("a", tokens, results, "int8"))},
        mask_tokens="m",
        golden=GoldenRef({"hr": "w"}, {"litert": "l"}),
        certificate="c",
        sbom="s",
    )


MEMBERS = {"e": b"encoder", "a": b"mixing bytes", "m": b"", "w": b"windows", "l": b"logits", "c": b"{}", "s": b"{}"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("tiny") / "tiny.armlet"
    write_bundle(path, tiny_manifest(), MEMBERS, [KEY])
    return path.read_bytes()


def forge(header: Any, members: bytes, key: Ed25519PrivateKey = KEY, magic: bytes = MAGIC) -> bytes:
    """A container made by hand and validly signed, so that only what is asked about is wrong."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    head = magic + struct.pack("<I", len(raw)) + raw
    signature = key.sign(hashlib.sha256(DOMAIN + head).digest())
    return head + b"\x01" + key.public_key().public_bytes_raw() + signature + members


def entry(name: str, data: bytes) -> dict[str, Any]:
    return {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def forge_members(members: dict[str, bytes]) -> bytes:
    header = {"schema": 1, "members": [entry(name, data) for name, data in members.items()]}
    return forge(header, b"".join(members.values()))


def verify(data: bytes, trusted: Trust = TRUSTED) -> bundle_module.Bundle:
    file = os.memfd_create("b.armlet")
    try:
        os.write(file, data)
        return _verify(file, "b.armlet", trusted)
    finally:
        os.close(file)


def test_it_reads_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "t.armlet"
    digest = write_bundle(path, tiny_manifest(), MEMBERS, [KEY])
    opened = open_bundle(path, TRUSTED)
    assert opened.manifest == tiny_manifest()
    assert opened.digest == digest
    assert {name: opened.read(name) for name in MEMBERS} == MEMBERS
    assert list(opened.sizes) == ["manifest.json", *sorted(MEMBERS)]
    assert decode_manifest(opened.read("manifest.json")) == tiny_manifest()
    with pytest.raises(MissingMemberError, match="no member 'x'"):
        opened.read("x")


def test_equal_contents_give_equal_files(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    write_bundle(one, tiny_manifest(), MEMBERS, [KEY])
    write_bundle(two, tiny_manifest(), dict(reversed(MEMBERS.items())), [KEY])
    assert one.read_bytes() == two.read_bytes()
    three = write_bundle(two, tiny_manifest(), MEMBERS | {"e": b"Encoder"}, [KEY])
    assert three != open_bundle(one, TRUSTED).digest


def test_the_digest_names_the_contents_whoever_signs(tmp_path: Path) -> None:
    path = tmp_path / "t.armlet"
    digest = write_bundle(path, tiny_manifest(), MEMBERS, [KEY])
    assert write_bundle(path, tiny_manifest(), MEMBERS, [OTHER_KEY]) == digest


def test_every_flipped_bit_is_refused(tmp_path: Path) -> None:
    """Also in the signature of a key that nobody here asks for."""
    write_bundle(tmp_path / "two.armlet", tiny_manifest(), MEMBERS, [KEY, OTHER_KEY])
    data = bytearray((tmp_path / "two.armlet").read_bytes())
    for position in range(len(data)):
        for bit in range(8):
            data[position] ^= 1 << bit
            with pytest.raises(BundleError) as caught:
                verify(bytes(data))
            assert "b.armlet" in str(caught.value) and "\n" not in str(caught.value), position
            data[position] ^= 1 << bit
    verify(bytes(data))


def test_every_truncation_is_refused(tiny: bytes) -> None:
    for length in range(len(tiny)):
        with pytest.raises(TruncatedBundleError, match="truncated"):
            verify(tiny[:length])


@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_no_mutation_is_taken(tiny: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(tiny)))
    end = data.draw(st.integers(start, min(len(tiny), start + 40)))
    mutated = tiny[:start] + data.draw(st.binary(max_size=40)) + tiny[end:]
    if mutated == tiny:
        verify(mutated)
        return
    with pytest.raises(BundleError):
        verify(mutated)


@given(st.binary(max_size=200), st.booleans())
@settings(max_examples=300, deadline=None)
def test_no_signed_nonsense_is_taken(noise: bytes, as_header: bool) -> None:
    """Even a trusted key cannot make the reader fail in another way than with its own errors."""
    data = forge(noise, b"") if as_header else forge_members({"manifest.json": noise})
    with pytest.raises(BundleError):
        verify(data)


def test_trailing_bytes_are_refused(tiny: bytes) -> None:
    with pytest.raises(TrailingBytesError, match="3 bytes after its end"):
        verify(tiny + b"xyz")


def test_what_is_no_bundle_is_refused() -> None:
    with pytest.raises(CorruptBundleError, match="is not an armlet bundle"):
        verify(b"PK\x03\x04" + b"\0" * 200)


def test_a_corrupt_member_is_named(tiny: bytes) -> None:
    with pytest.raises(CorruptBundleError, match="the member 'a' is corrupt"):
        verify(tiny.replace(b"mixing bytes", b"m1xing bytes"))


def test_a_corrupt_header_is_refused(tiny: bytes) -> None:
    with pytest.raises(CorruptBundleError, match="corrupt header"):
        verify(tiny.replace(b'"members"', b'"members\x00'))


def test_a_header_changed_consistently_breaks_the_signature(tiny: bytes) -> None:
    """The case of someone who changes a member and its hash, but cannot sign."""
    old, new = (hashlib.sha256(data).hexdigest().encode() for data in (b"mixing bytes", b"m1xing bytes"))
    with pytest.raises(SignatureError, match="no valid signature") as caught:
        verify(tiny.replace(b"mixing bytes", b"m1xing bytes").replace(old, new))
    assert not isinstance(caught.value, UntrustedKeyError)


def test_another_key_is_not_trusted(tiny: bytes) -> None:
    with pytest.raises(UntrustedKeyError, match=r"not trusted here \(trusted: [0-9a-f]{16}\).*--key"):
        verify(tiny, Trust((OTHER_KEY.public_key(),)))
    with pytest.raises(UntrustedKeyError, match=r"\(trusted: none\)"):
        verify(tiny, Trust(()))


def test_a_key_put_in_place_of_the_signers_does_not_help(tiny: bytes) -> None:
    swapped = tiny.replace(KEY.public_key().public_bytes_raw(), OTHER_KEY.public_key().public_bytes_raw())
    with pytest.raises(SignatureError):
        verify(swapped, Trust((KEY.public_key(), OTHER_KEY.public_key())))


def test_a_signature_for_something_else_is_not_valid(tiny: bytes) -> None:
    """Without the domain, a signature over any SHA-256 that someone had us sign would do."""
    head = tiny[: tiny.index(b"]}") + 2]
    digest = hashlib.sha256(DOMAIN + head).digest()
    forged = tiny.replace(KEY.sign(digest), KEY.sign(hashlib.sha256(head).digest()))
    assert forged != tiny
    with pytest.raises(SignatureError):
        verify(forged)


def test_newer_schemas_are_told_apart(tiny: bytes) -> None:
    with pytest.raises(NewerSchemaError, match=r"container version 3.*knows version 2"):
        verify(MAGIC[:-1] + b"\x03" + tiny[len(MAGIC) :])
    with pytest.raises(SchemaError, match="container version 1, older"):
        verify(MAGIC[:-1] + b"\x01" + tiny[len(MAGIC) :])
    with pytest.raises(NewerSchemaError, match=r"header of schema 2.*update armlet"):
        verify(forge({"schema": 2, "parts": []}, b""))
    newer = json.dumps({"schema": MANIFEST_SCHEMA + 1, "anything": "else"}).encode()
    with pytest.raises(NewerSchemaError, match=r"b\.armlet: the manifest is of schema 5.*update armlet"):
        verify(forge_members({"manifest.json": newer} | MEMBERS))


def test_a_header_that_asks_for_much_is_not_read() -> None:
    claimed = MAGIC + struct.pack("<I", MAX_HEADER + 1) + b" " * 500
    with pytest.raises(CorruptBundleError, match="more than the 1048576 allowed"):
        verify(claimed)
    nested = b'{"schema": 1, "members": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with pytest.raises(BundleError):
        verify(forge(nested, b""))
    manifest = encode_manifest(tiny_manifest())
    members = {"manifest.json": manifest} | MEMBERS
    endless = [entry(name, data) for name, data in members.items()]
    endless[-1]["size"] = 1 << 60
    with pytest.raises(TruncatedBundleError, match="of 115292150460684"):
        verify(forge({"schema": 1, "members": endless}, b"".join(members.values())))
    with pytest.raises(SchemaError, match="manifest of 1152921504606846976 bytes, more than"):
        verify(forge({"schema": 1, "members": [{"name": "manifest.json", "size": 1 << 60, "sha256": "0" * 64}]}, b""))


@pytest.mark.parametrize(
    "header",
    [
        {"schema": 0, "members": []},
        {"schema": 1, "members": [], "more": 1},
        {"schema": 1, "members": [{"name": "a", "size": -1, "sha256": "0" * 64}]},
        {"schema": 1, "members": [{"name": "a", "size": 1.5, "sha256": "0" * 64}]},
        {"schema": 1, "members": [{"name": "a", "size": 0}]},
    ],
)
def test_a_header_must_follow_its_schema(header: dict[str, Any]) -> None:
    with pytest.raises(SchemaError):
        verify(forge(header, b""))


def test_a_member_twice_is_refused() -> None:
    members = [entry("manifest.json", b""), entry("a", b"1"), entry("a", b"2")]
    with pytest.raises(SchemaError, match="the member 'a' twice"):
        verify(forge({"schema": 1, "members": members}, b"12"))


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", ".hidden", "a\\b", "a\n", "é", "a" * 201]
)
def test_odd_member_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="not a plain relative path"):
        verify(forge_members({name: b""}))
    with pytest.raises(BundleError, match="not a plain relative path"):
        write_bundle(tmp_path / "t.armlet", tiny_manifest(), MEMBERS | {name: b""}, [KEY])
    assert list(tmp_path.iterdir()) == []


def test_a_missing_member_is_named(tmp_path: Path) -> None:
    rest = {name: data for name, data in MEMBERS.items() if name != "l"}
    with pytest.raises(MissingMemberError, match="names the member 'l', which is not in the bundle"):
        verify(forge_members({"manifest.json": encode_manifest(tiny_manifest())} | rest))
    with pytest.raises(MissingMemberError, match="'l'"):
        write_bundle(tmp_path / "t.armlet", tiny_manifest(), rest, [KEY])
    with pytest.raises(MissingMemberError, match=r"no member 'manifest\.json'"):
        verify(forge_members(MEMBERS))


def changed(**fields: Any) -> Manifest:
    return msgspec.structs.replace(tiny_manifest(), **fields)


def with_encoder(ref: ProgramRef) -> Manifest:
    programs = tiny_manifest().engines["litert"]
    return changed(engines={"litert": EnginePrograms({"hr": ref}, programs.aggregator)})


def with_step(state: tuple[int, ...] = (1, 1, 3), **fields: Any) -> Manifest:
    """Windows of 8 samples every 2; the state rests on samples 3 to 6, a step reads the first two and the last four."""
    window, token = {"window": (1, 1, 8)}, {"token": (1, 2)}
    program = ProgramRef("s1", {"window": (1, 1, 6), "state": state}, token | {"next_state": state}, "int8")
    step = msgspec.structs.replace(StepProgram(program, hop=2, head=2, tail=4, rests_on=(3, 7)), **fields)
    encoder = ProgramRef("e", window, token | {"next_state": (1, 1, 3)}, "int8")
    programs = EnginePrograms({"hr": encoder}, tiny_manifest().engines["litert"].aggregator, {"hr": step})
    return changed(window=WindowSpec(4.0, 1.0), engines={"litert": programs})


def test_a_manifest_with_steps_is_read_again_and_names_their_programs() -> None:
    manifest = with_step()
    assert decode_manifest(encode_manifest(manifest)) == manifest
    assert named_members(manifest) == sorted([*MEMBERS, "s1"])


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (
            with_step(state=(1, 2, 3)),
            r"must take window \(1, 1, 8\) and give token \(1, 2\) and next_state \(1, 2, 3\)",
        ),
        (with_step(hop=1), "step program of 'hr' for litert does not fit"),
        (with_step(head=0), "does not fit"),
        (with_step(tail=3), "does not fit"),
        (with_step(head=3), "does not fit"),
        (with_step(rests_on=(1, 7)), "does not fit"),
        (with_step(rests_on=(3, 9)), "does not fit"),
        (with_step(rests_on=(3, 5)), "does not fit"),
        (
            changed(
                engines={
                    "litert": msgspec.structs.replace(
                        tiny_manifest().engines["litert"], steps={"acc": with_step().engines["litert"].steps["hr"]}
                    )
                }
            ),
            "the step programs for litert are not of its modalities",
        ),
        (changed(schema=0), "schema 0 does not exist"),
        (changed(modalities=()), "at least one modality"),
        (changed(modalities=tiny_manifest().modalities * 2), "no modality twice"),
        (changed(labels=()), "at least one label"),
        (changed(labels=("a", "a")), "no label twice"),
        (changed(token_dim=0), "must be positive"),
        (changed(window=WindowSpec(1.0, 0.0)), "length and hop must be positive"),
        (changed(modalities=(Modality("hr", ("rate",), "bpm", 0.0),)), "needs channels, a rate"),
        (changed(normalisation={}), "'hr' has no normalisation"),
        (changed(normalisation={"hr": Normalisation((0.0,), (0.0,))}), "positive deviation"),
        (changed(normalisation={"hr": Normalisation((0.0, 1.0), (1.0, 1.0))}), "for each channel"),
        (changed(golden=GoldenRef({}, {"litert": "l"})), "golden windows"),
        (changed(golden=GoldenRef({"hr": "w"}, {})), "no golden logits for litert"),
        (changed(engines={}), "programs for no engine"),
        (changed(engines={"litert": EnginePrograms({}, tiny_manifest().engines["litert"].aggregator)}), "encoders for"),
        (with_encoder(ProgramRef("e", {"window": (1, 2, 2)}, {"token": (1, 2)}, "int8")), "must take window"),
        (with_encoder(ProgramRef("e", {"window": (1, 1, 2)}, {"token": (1, 2)}, "int3")), "precision 'int3'"),
        (changed(labels=("a", "b")), "the aggregator for litert must take"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(manifest: Manifest, words: str, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=words):
        verify(forge_members({"manifest.json": encode_manifest(manifest)} | MEMBERS))
    with pytest.raises(SchemaError, match=words):
        write_bundle(tmp_path / "t.armlet", manifest, MEMBERS, [KEY])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", ['"name"', '"labels"', '"rate_hz"'])
def test_a_manifest_must_match_its_struct(change: str) -> None:
    renamed = encode_manifest(tiny_manifest()).replace(change.encode(), b'"unheard_of"')
    with pytest.raises(SchemaError, match="does not follow schema 4"):
        verify(forge_members({"manifest.json": renamed} | MEMBERS))


def test_named_members_are_all_of_them() -> None:
    assert named_members(tiny_manifest()) == sorted(MEMBERS)
    assert named_members(changed(prototypes="p")) == sorted([*MEMBERS, "p"])


def test_a_failed_write_leaves_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.armlet"
    write_bundle(path, tiny_manifest(), MEMBERS, [KEY])
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    real: Callable[[int], None] = os.fsync
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_bundle(path, tiny_manifest(), MEMBERS | {"e": b"new"}, [KEY])
    monkeypatch.setattr(os, "fsync", real)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"cannot read the bundle .*No such file"):
        open_bundle(tmp_path / "nothing.armlet", TRUSTED)
    with pytest.raises(BundleError, match="is not a plain file"):
        open_bundle(tmp_path, TRUSTED)


def test_the_small_models_bundle_survives_no_flip(small_bundle: Any) -> None:
    """Every 97th byte of a bundle with real programs."""
    data = bytearray(small_bundle.path.read_bytes())
    trusted = Trust((small_bundle.key.public_key(),))
    for position in range(0, len(data), 97):
        data[position] ^= 0x10
        with pytest.raises(BundleError):
            verify(bytes(data), trusted)
        data[position] ^= 0x10
    verify(bytes(data), trusted)
