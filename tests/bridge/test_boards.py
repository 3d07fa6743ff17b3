"""Deploying to a board's agent: over a pipe, over links that break, and over a real sshd on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from armlet_bridge.boards import agent_client, push, ssh
from armlet_bridge.boards.agent_client import AgentClient, BoardError, LinkError
from armlet_bridge.boards.environment import trust_owner
from armlet_bridge.boards.push import push_bundle
from armlet_bridge.boards.target import parse_target
from armlet_runtime.bundle import keys
from armlet_runtime.bundle.container import open_bundle, read_front
from armlet_runtime.bundle.trust import Trust, adopt, install, next_set, trusted_keys
from armlet_runtime.errors import DeployError, SignatureError, UsageError
from armlet_runtime.install import decode_message, pack_frame
from armlet_runtime.install.agent_protocol import UpdateResult
from armlet_runtime.install.rollback_protection import permit
from armlet_runtime.install.slots import current_bundle
from tests.support.sshd import Sshd, missing

MakeBundle = Callable[..., Path]


@pytest.fixture
def prefix(tmp_path: Path, signing_key: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A board that trusts the signing key."""
    path = tmp_path / "board"
    monkeypatch.setenv("ARMLET_HOME", str(path / "home"))
    keys.trust(keys.load_public(signing_key.with_name(signing_key.name + ".pub")))
    monkeypatch.setenv("ARMLET_HOME", str(tmp_path / "workstation"))
    return path


def connecting(prefix: Path, cut_after: list[int] | None = None) -> agent_client.Connect:
    """Links to the board's agent; each of the first ones is cut after that many bytes sent to it."""

    @contextlib.asynccontextmanager
    async def connect() -> AsyncIterator[AgentClient]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "armlet_runtime.install.agent", str(prefix),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        writer: Any = Cut(process, cut_after.pop(0)) if cut_after else process.stdin
        try:
            yield AgentClient(process.stdout, writer)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    return connect


class Cut:
    """A writer whose other side is gone after some bytes, as when the radio link is lost in the middle."""

    def __init__(self, process: asyncio.subprocess.Process, left: int) -> None:
        self.process, self.left = process, left

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data[: self.left])
        self.left -= len(data)

    async def drain(self) -> None:
        if self.left < 0:
            self.process.kill()
            await self.process.wait()


async def put(board: AgentClient, sha256: str, offset: int, data: bytes) -> None:
    await board.put(sha256, offset, data)
    await board.acknowledged()


def digest(prefix: Path) -> str:
    return open_bundle(current_bundle(prefix / "slot"), None).digest


async def test_a_bundle_reaches_a_board_and_the_next_costs_only_its_changes(
    make_bundle: MakeBundle, prefix: Path
) -> None:
    states: list[str] = []
    first = await push_bundle(make_bundle(1), "b", connecting(prefix), progress=lambda state, *_: states.append(state))
    assert (first.result, first.links_lost) == (UpdateResult.SUCCESS, 0), first.message
    assert list(dict.fromkeys(states)) == ["downloading", "downloaded", "updating", "idle"]
    front = read_front(make_bundle(1), None)
    old = {member.sha256: member.size for member in front.members}
    assert first.bytes_sent == sum(old.values()) - front.members[0].size and digest(prefix) == first.digest
    second = await push_bundle(make_bundle(2), "b", connecting(prefix))
    assert second.result is UpdateResult.SUCCESS and digest(prefix) == second.digest != first.digest
    new = {member.sha256: member.size for member in read_front(make_bundle(2), None).members[1:]}
    assert second.bytes_sent == sum(size for sha256, size in new.items() if sha256 not in old) < first.bytes_sent
    assert not (prefix / "incoming").exists()


async def test_a_link_that_breaks_is_taken_up_where_it_broke(
    make_bundle: MakeBundle, prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "CHUNK", 500)
    monkeypatch.setattr(push, "UNDER_WAY", 1)
    bundle = make_bundle(1)
    front = len(read_front(bundle, None).data)
    cuts = [10, front // 2, front + 900, front + 100, front + 900]
    done = await push_bundle(bundle, "b", connecting(prefix, cuts), retries_s=(0.0,) * 3)
    assert (done.result, done.links_lost) == (UpdateResult.SUCCESS, 5), done.message
    whole = done.bytes_bundle - front
    assert whole - 10 <= done.bytes_sent <= whole + 5 * 500, "more was sent again than the chunk that was under way"
    assert digest(prefix) == done.digest


async def test_a_board_out_of_reach_is_given_up(make_bundle: MakeBundle, prefix: Path) -> None:
    with pytest.raises(LinkError, match="link to the board ended"):
        await push_bundle(make_bundle(1), "b", connecting(prefix, [3] * 4), retries_s=(0.0,) * 3)
    assert not (prefix / "slot").exists()


async def test_a_refusal_is_the_boards_own_sentence(make_bundle: MakeBundle, prefix: Path, tmp_path: Path) -> None:
    good = await push_bundle(make_bundle(1), "b", connecting(prefix))
    keys.generate(tmp_path / "stranger")
    strange = await push_bundle(make_bundle(2, key=tmp_path / "stranger"), "b", connecting(prefix))
    assert strange.result is UpdateResult.INTEGRITY_CHECK_FAILED and strange.bytes_sent == 0
    assert "the offered bundle is signed by the key" in strange.message
    broken = await push_bundle(make_bundle(2, golden_error=0.5), "b", connecting(prefix))
    assert broken.result is UpdateResult.UPDATE_FAILED and "golden run on onnx differs by 0.5" in broken.message
    assert digest(prefix) == good.digest
    async with connecting(prefix)() as board:
        said = await board.hello()
        assert said["update"]["result"] == UpdateResult.UPDATE_FAILED and said["places"]["a"]["digest"] == good.digest


async def test_an_install_goes_on_without_the_workstation(make_bundle: MakeBundle, prefix: Path) -> None:
    bundle = make_bundle(1)
    front, whole = read_front(bundle, None), open_bundle(bundle, None)
    async with connecting(prefix)() as board:
        for part in await board.offer(front, None):
            name = next(member.name for member in front.members if member.sha256 == part["sha256"])
            await put(board, part["sha256"], 0, whole.read(name))
        async for _ in board.install(front.digest, None):
            break  # the workstation goes away at the first word
    for _ in range(600):
        if (prefix / "slot" / "current").exists():
            break
        await asyncio.sleep(0.1)
    assert digest(prefix) == front.digest


async def test_what_does_not_follow_the_protocol_is_refused(make_bundle: MakeBundle, prefix: Path) -> None:
    front = read_front(make_bundle(1), None)
    async with connecting(prefix)() as board:
        with pytest.raises(BoardError, match="was offered no bundle yet"):
            await put(board, "0" * 64, 0, b"x")
        wanted = await board.offer(front, None)
        part = max(wanted, key=lambda part: int(part["size"]))
        with pytest.raises(BoardError, match="was not offered a part"):
            await put(board, "0" * 64, 0, b"x")
        with pytest.raises(BoardError, match=r"has 0 of \d+ bytes here, not 5"):
            await put(board, part["sha256"], 5, b"x")
        with pytest.raises(BoardError, match=r"has 0 of \d+ bytes here"):
            await put(board, part["sha256"], 0, bytes(part["size"] + 1))  # endless data
        with pytest.raises(BoardError, match="arrived with other contents than were signed"):
            await put(board, part["sha256"], 0, bytes(part["size"]))
        with pytest.raises(BoardError, match="last offered"):
            async for _ in board.install("0" * 64, None):
                pass
        await board._send({"op": "explode"}, b"")
        with pytest.raises(BoardError, match="does not know the request 'explode'"):
            await board._receive()


async def test_what_a_board_writes_is_made_printable() -> None:
    reader, said = asyncio.StreamReader(), "\x1b]0;owned\x07 is well"
    reader.feed_data(pack_frame({"update": {"message": said}, "engines": {said: None}}, b""))
    reader.feed_data(pack_frame({"error": said, "result": UpdateResult.OUT_OF_MEMORY}, b""))
    board = AgentClient(reader, cast(Any, None))
    message = await board._receive()
    shown = r"\x1b]0;owned\x07 is well"
    assert message == {"update": {"message": shown}, "engines": {shown: None}}
    with pytest.raises(BoardError) as refused:
        await board._receive()
    assert str(refused.value) == shown


async def test_a_login_that_prints_something_is_told() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(b"Welcome to Raspberry Pi OS\n" * 3)
    with pytest.raises(DeployError, match="does not speak armlet's protocol"):
        await AgentClient(reader, asyncio.StreamReader())._receive()  # type: ignore[arg-type]
    with pytest.raises(DeployError, match="without a JSON object"):
        decode_message(b"[1]")


@pytest.mark.parametrize(
    "text", ["pi@board", "ssh://", "ssh://a b", "ssh://-oProxyCommand", "ssh://x:99999", "http://x"]
)
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a board's address"):
        parse_target(text)


def test_targets_are_read() -> None:
    assert str(parse_target("ssh://pi@board.local:2222")) == "ssh://pi@board.local:2222"
    assert parse_target("ssh://[fe80::1]").host == "fe80::1"


async def test_a_board_goes_back_by_its_owners_word(
    make_bundle: MakeBundle, prefix: Path, signing_key: Path, tmp_path: Path
) -> None:
    owner = keys.load_private(signing_key)
    old = await push_bundle(make_bundle(1, release=1), "b", connecting(prefix))
    new = await push_bundle(make_bundle(2, release=2), "b", connecting(prefix))
    assert (
        await push_bundle(make_bundle(1, release=1), "b", connecting(prefix))
    ).result is UpdateResult.UNSUPPORTED_PACKAGE
    async with connecting(prefix)() as board:
        with pytest.raises(BoardError, match="going back needs the owner's signed permission"):
            await board.roll_back(None)
        stranger = keys.generate(tmp_path / "stranger")
        with pytest.raises(BoardError, match="signed by 0 of the 1 keys"):
            await board.roll_back(permit(old.digest, 2, [stranger]))
        assert digest(prefix) == new.digest
        entry = await board.roll_back(permit(old.digest, (await board.hello())["floor"], [owner]))
    assert entry.version == "0.1" and digest(prefix) == old.digest
    assert (await push_bundle(make_bundle(2, release=2), "b", connecting(prefix))).result is UpdateResult.SUCCESS


async def test_whom_a_board_trusts_is_not_changed_by_a_second_setup(
    prefix: Path, signing_key: Path, tmp_path: Path
) -> None:
    owner = trusted_keys([signing_key.with_name(signing_key.name + ".pub")])
    keys.generate(tmp_path / "stranger")
    async with connecting(prefix)() as board:
        names = await trust_owner(board, "ssh://b", owner)
        assert names == [keys.key_id(owner.keys[0])]
        with pytest.raises(DeployError, match=r"none of the keys here.*board remove ssh://b"):
            await trust_owner(board, "ssh://b", trusted_keys([tmp_path / "stranger.pub"]))


async def test_a_board_adopts_the_threshold_of_its_owners_keys(
    prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = keys.default_signing_key()  # the workstation trusts it
    second, third = (keys.generate(tmp_path / name) for name in ("second", "third"))
    public = [first.public_key(), second.public_key()]
    install(next_set(trusted_keys(), public, 2, [first, second]), "1")
    owner, board_home = trusted_keys(), tmp_path / "new" / "home"
    async with connecting(tmp_path / "new")() as board:
        assert set(await trust_owner(board, "ssh://b", owner)) == {keys.key_id(key) for key in public}
    rotation = next_set(owner, [second.public_key(), third.public_key()], 2, [first, second, third])
    monkeypatch.setenv("ARMLET_HOME", str(board_home))
    assert (trusted_keys().threshold, trusted_keys().version) == (2, 1)
    assert install(rotation, "2").version == 2, "the board follows the next rotation"
    with pytest.raises(SignatureError, match="keys are trusted here already"):
        adopt(owner.document, "an older set")


async def test_a_board_adopts_no_trust_set_that_its_own_keys_have_not_signed(tmp_path: Path) -> None:
    first, second = (keys.generate(tmp_path / name) for name in ("first", "second"))
    public = [first.public_key(), second.public_key()]
    unsigned = next_set(Trust(tuple(public)), public, 2, [first])
    async with connecting(tmp_path / "new")() as board:
        with pytest.raises(BoardError, match="1 of the 2 keys"):
            await board.trust(Trust(tuple(public), 2, 1, unsigned))
        assert await board.trust(Trust(())) == [], "the board trusts nobody yet"


def need_sshd() -> None:
    """Skip the test where OpenSSH's server cannot be started."""
    if (why := missing()) is not None:
        pytest.skip(why)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    need_sshd()
    server = Sshd(tmp_path_factory.mktemp("sshd"))
    server.start()
    yield server
    server.stop()


@pytest.mark.full("installs an environment from a package index")
@pytest.mark.long(limit_s=300, reason="installs an environment from a package index")
def test_a_board_is_set_up_and_deployed_to_over_ssh(
    sshd: Sshd, make_bundle: MakeBundle, signing_key: Path, tmp_path: Path
) -> None:
    home = tmp_path / "person"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    (home / ".ssh" / "config").write_text(
        f"Host board\n  HostName 127.0.0.1\n  Port {sshd.port}\n  User root\n  IdentityFile {sshd.key}\n"
    )
    public = signing_key.with_name(signing_key.name + ".pub")

    def armlet(*arguments: object, ok: bool = True) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "armlet_runtime", *map(str, arguments)], capture_output=True, text=True, check=False,
            env={"UV_CACHE_DIR": str(Path.home() / ".cache" / "uv"), **os.environ, "HOME": str(home),
                 "ARMLET_HOME": str(home / "armlet"), "COLUMNS": "300"},
        )  # fmt: skip
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        return done.stdout if ok else done.stdout + done.stderr

    said = armlet("board", "info", "ssh://board", ok=False)
    assert f"--host-key {sshd.fingerprint}" in said
    assert "nothing was written to known_hosts" in armlet(
        "board", "info", "ssh://board", "--host-key", "SHA256:x", ok=False
    )
    assert not (home / ".ssh" / "known_hosts").exists()
    assert "has no armlet yet" in armlet("board", "info", "ssh://board", "--host-key", sshd.fingerprint, ok=False)
    said = armlet("board", "setup", "ssh://board", "--key", public, "--engine", "onnx", "--json", tmp_path / "1.json")
    assert "ssh://board is ready" in said
    again = armlet("board", "setup", "ssh://board", "--key", public, "--engine", "onnx")
    assert "0.0 MB sent" in again
    assert "no bundle yet" in armlet("board", "info", "ssh://board")
    assert "no bundle yet: 'armlet deploy" in armlet("board", "status", "ssh://board", ok=False)
    said = armlet("deploy", make_bundle(1), "ssh://board", "--key", public, "--json", tmp_path / "2.json")
    assert "toy 0.1 is in use" in said and json.loads((tmp_path / "2.json").read_text())["links_lost"] == 0
    assert "golden run" in armlet("deploy", make_bundle(2, golden_error=0.5), "ssh://board", "--key", public, ok=False)
    assert "update: idle, the golden run on onnx differs" in armlet("board", "status", "ssh://board")
    armlet("deploy", make_bundle(3), "ssh://board", "--key", public)
    said = armlet("board", "status", "ssh://board", "--json", tmp_path / "3.json")
    assert "runs toy 0.3" in said and "before it: toy 0.1" in said and "unit: none" in said
    status = json.loads((tmp_path / "3.json").read_text())
    assert status["update"]["result"] == UpdateResult.SUCCESS and abs(status["clock_s"]) < 5
    (sshd.home / ssh.PREFIX / "update.log").write_text("one\ntwo\nthree\n")
    assert "update:\n  two\n  three\n" in armlet("board", "logs", "ssh://board", "--lines", 2)
    inventory = tmp_path / "boards.toml"
    inventory.write_text('[[group]]\nname = "desk"\nboards = ["ssh://board"]\n')
    everybody = (f"fleet:{inventory}", "ssh://board", "ssh://127.0.0.1:1")
    said = armlet("board", "list", *everybody, "--json", tmp_path / "4.json", ok=False)
    assert "toy 0.3" in said and "desk" in said and "1 of 2 boards run a bundle" in said
    away = json.loads((tmp_path / "4.json").read_text())[1]
    assert away["bundle"] is None and "cannot reach ssh://127.0.0.1:1" in away["update"]["message"]
    assert "ssh://board: armlet is removed" in armlet("board", "remove", "ssh://board")
    assert not (sshd.home / ssh.PREFIX).exists()
    assert "has no armlet yet" in armlet("board", "status", "ssh://board", ok=False)
