"""``armlet key``: make and show keys, sign, permit an older bundle, and change the trusted keys."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from ..bundle import Trust

NAME = "key"
HELP = "Make signing keys, show and change the trusted keys, sign bundles, and permit an older bundle."
EXAMPLE = """armlet key new --passphrase
  armlet key rotate trust-1.json --add second.key.pub --threshold 2 --with signing.key --with second.key"""
EXTRA = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    new = actions.add_parser("new", help="make a key pair: FILE, private, and FILE.pub")
    new.add_argument("file", type=Path, nargs="?", help="default: this home's signing key")
    new.add_argument("--passphrase", action="store_true", help="encrypt the key; you are asked for the passphrase")

    show = actions.add_parser("show", help="show the keys that this home trusts, or the key in a file")
    show.add_argument("file", type=Path, nargs="?", help="a public or private key")

    sign = actions.add_parser("sign", help="add a signature to a bundle, a trust set or a permission")
    sign.add_argument("file", type=Path, help="file to sign; the signed file replaces it")
    _add_signers(sign)

    permit = actions.add_parser("permit", help="permit a board to go back to a bundle of a lower release")
    permit.add_argument("bundle", type=Path, help="the bundle that is permitted")
    permit.add_argument("out", type=Path, metavar="OUT.json", help="file of the permission, for 'armlet deploy'")
    permit.add_argument(
        "--over",
        type=int,
        required=True,
        metavar="RELEASE",
        help="highest release that the board has had, as its refusal says",
    )
    _add_signers(permit)

    rotate = actions.add_parser("rotate", help="write the next trust set: other keys, another threshold")
    rotate.add_argument("out", type=Path, metavar="OUT.json", help="file of the trust set, for 'armlet key trust'")
    rotate.add_argument("--add", type=Path, action="append", default=[], metavar="FILE.pub", help="a key to trust")
    rotate.add_argument("--remove", action="append", default=[], metavar="NAME", help="a key to trust no longer")
    rotate.add_argument("--threshold", type=int, metavar="N", help="how many keys must sign (default: as many as now)")
    _add_signers(rotate)

    trust = actions.add_parser("trust", help="trust a first public key, or install the next trust set")
    trust.add_argument("file", type=Path, metavar="FILE.pub|FILE.json")


def _add_signers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--with", dest="signers", type=Path, action="append", default=[], metavar="KEY",
        help="private key to sign with (repeatable; default: this home's signing key)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Do the action."""
    actions = {"new": _new, "show": _show, "sign": _sign, "permit": _permit, "rotate": _rotate, "trust": _trust}
    actions[args.action](args)
    return 0


def _new(args: argparse.Namespace) -> None:
    from ..bundle import keys

    path = args.file or keys.home() / keys.SIGNING
    passphrase = keys.ask_passphrase(path, twice=True) if args.passphrase else None
    key = keys.generate(path, passphrase).public_key()
    print(f"key {keys.key_id(key)}: {path} (private: keep it, and keep a copy) and {path}.pub (give it to boards)")
    if args.file is not None:
        return
    if keys.trust_set_path().exists():
        print(f"it is not trusted here: 'armlet key rotate OUT.json --add {path}.pub' makes a trust set with it")
    else:
        print(f"this home trusts it: {keys.trust(key)}")


def _show(args: argparse.Namespace) -> None:
    from ..bundle import keys, trusted_keys

    if args.file:
        private = b"PRIVATE" in args.file.read_bytes() if args.file.is_file() else False
        key = keys.load_private(args.file).public_key() if private else keys.load_public(args.file)
        print(f"{args.file}: {'private' if private else 'public'} key {keys.key_id(key)}")
        return
    signing = keys.home() / f"{keys.SIGNING}.pub"
    print(f"home: {keys.home()}")
    print(f"signing key: {keys.key_id(keys.load_public(signing)) if signing.exists() else 'none yet'}")
    _describe(trusted_keys())


def _describe(trust: Trust) -> None:
    from ..bundle import key_id

    names = ", ".join(key_id(key) for key in trust.keys) or "nobody yet"
    source = f"trust set {trust.version}" if trust.version else "the files in trusted/"
    print(f"trusted, by {source}: any {trust.threshold} of {names}")


def _signers(args: argparse.Namespace) -> list[Ed25519PrivateKey]:
    from ..bundle import default_signing_key, load_private

    return [load_private(path) for path in args.signers] or [default_signing_key()[0]]


def _read(path: Path) -> bytes:
    from ..errors import UsageError

    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def _sign(args: argparse.Namespace) -> None:
    from .. import files
    from ..bundle import add_signature, container, dsse

    signers = _signers(args)
    if _read(args.file).startswith(container.MAGIC[:6]):
        count = 0
        for key in signers:
            count = add_signature(args.file, key)
        print(f"{args.file}: signed by {count} keys now")
        return
    data = _read(args.file)
    for key in signers:
        data = dsse.add_signature(data, key, str(args.file))
    files.write_atomic(args.file, data)
    print(f"{args.file}: signed")


def _permit(args: argparse.Namespace) -> None:
    from .. import files
    from ..bundle import open_bundle
    from ..install import permit

    opened = open_bundle(args.bundle, None)
    files.write_atomic(args.out, permit(opened.digest, args.over, _signers(args)))
    manifest = opened.manifest
    print(f"{args.out}: {manifest.name} {manifest.version} may once take the place of release {args.over}")


def _rotate(args: argparse.Namespace) -> None:
    from .. import files
    from ..bundle import check_next, keys, next_set, trusted_keys
    from ..errors import SignatureError, UsageError

    now = trusted_keys()
    names = {keys.key_id(key) for key in now.keys}
    for name in args.remove:
        if name not in names:
            raise UsageError(f"no trusted key is called {name}; 'armlet key show' lists them")
    remaining = [key for key in now.keys if keys.key_id(key) not in args.remove]
    added = [keys.load_public(path) for path in args.add]
    data = next_set(now, [*remaining, *added], args.threshold or now.threshold, _signers(args))
    files.write_atomic(args.out, data)
    try:
        _describe(check_next(data, now, str(args.out)))
        print(f"{args.out}: install it here and on every board with 'armlet key trust {args.out}'")
    except SignatureError as error:
        print(f"{args.out}: not in force yet: {error} ('armlet key sign {args.out}')")


def _trust(args: argparse.Namespace) -> None:
    from ..bundle import keys, trust

    data = _read(args.file)
    if data.lstrip().startswith(b"{"):
        _describe(trust.install(data, str(args.file)))
        return
    keys.trust(keys.load_public(args.file))
    _describe(trust.trusted_keys())
