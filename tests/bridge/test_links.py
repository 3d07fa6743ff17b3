"""Deploys over bad links: packets lost, late, and none at all for a while, under the kernel's own TCP."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from armlet_bridge.boards import agent_client, push, ssh, target
from armlet_bridge.boards.agent_client import AgentClient, LinkError
from armlet_bridge.boards.push import push_bundle
from armlet_runtime.bundle import keys
from armlet_runtime.bundle.container import open_bundle
from armlet_runtime.install.agent import HOME
from armlet_runtime.install.agent_protocol import UpdateResult
from armlet_runtime.install.slots import current_bundle
from tests.support.bad_link import BadLink, why_not
from tests.support.sshd import Sshd

from .test_boards import need_sshd

pytestmark = pytest.mark.full("waits for real links to fail")

MakeBundle = Callable[..., Path]
PORT = 7654


@pytest.fixture
def link(tmp_path: Path, signing_key: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BadLink]:
    """A link to a made board, good as yet."""
    if why := why_not():
        pytest.skip(why)
    monkeypatch.setenv("ARMLET_HOME", str(tmp_path / "board" / HOME))
    keys.trust(keys.load_public(signing_key.with_name(signing_key.name + ".pub")))
    with BadLink() as made:
        command = [sys.executable, "-m", "tests.support.made_fleet", f"{made.address}:{PORT}", str(tmp_path)]
        served = subprocess.Popen(
            made.inside(*command), stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )
        assert served.stdout is not None and "listening" in served.stdout.readline()
        yield made
    # With the link its far end has gone: what served, and what that had forked for each connection.
    served.wait(10)
    served.stdout.close()


def test_nobody_is_left_at_the_far_end(tmp_path: Path) -> None:
    if why := why_not():
        pytest.skip(why)
    with BadLink() as made:
        grandchild = tmp_path / "grandchild"
        script = f"setsid sleep 600 & echo $! > {grandchild}; wait"
        child = subprocess.Popen(made.inside("sh", "-c", script))
        while not (grandchild.exists() and grandchild.read_text().strip()):
            time.sleep(0.01)
    assert child.wait(10) == -signal.SIGKILL
    left = Path("/proc", grandchild.read_text().strip(), "stat")
    assert not left.exists() or left.read_text().rpartition(")")[2].split()[0] == "Z"


def connecting(link: BadLink, patience_s: float = 20.0) -> agent_client.Connect:
    @contextlib.asynccontextmanager
    async def connect() -> AsyncIterator[AgentClient]:
        try:
            opening = asyncio.open_connection(link.address, PORT)
            reader, writer = await asyncio.wait_for(opening, patience_s)
        except (OSError, TimeoutError) as error:
            raise LinkError(f"cannot reach the board: {str(error) or type(error).__name__}") from None
        writer.write(b"board\n")
        try:
            yield AgentClient(reader, writer)
        finally:
            writer.transport.abort()

    return connect


def digest(tmp_path: Path) -> str:
    return open_bundle(current_bundle(tmp_path / "board" / "slot"), None).digest


@pytest.mark.parametrize(("loss", "delay_s"), [(0.1, 0.3), (0.3, 0.01)])
async def test_a_deploy_ends_over_a_link_that_loses_packets(
    loss: float, delay_s: float, link: BadLink, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    link.loss, link.delay_s = loss, delay_s
    done = await push_bundle(make_bundle(1), "board", connecting(link), retries_s=(0.5,) * 60)
    assert done.result is UpdateResult.SUCCESS, done.message
    assert digest(tmp_path) == done.digest and link.carried > 20


async def test_a_link_that_stays_away_leaves_the_old_bundle(
    link: BadLink, make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_client, "ANSWER_S", 2.0)
    old = await push_bundle(make_bundle(1), "board", connecting(link))
    assert old.result is UpdateResult.SUCCESS

    def cut(state: str, done: int, total: int) -> None:
        link.cut = True

    with pytest.raises(LinkError):
        await push_bundle(make_bundle(2), "board", connecting(link, 1.0), progress=cut, retries_s=(0.1, 0.1))
    assert digest(tmp_path) == old.digest
    link.cut = False
    new = await push_bundle(make_bundle(2), "board", connecting(link))
    assert new.result is UpdateResult.SUCCESS and digest(tmp_path) == new.digest
    assert new.bytes_sent < new.bytes_bundle, "what had arrived before the cut counts"


async def test_a_link_that_is_lost_during_the_install_is_no_second_install(
    link: BadLink, make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_client, "ANSWER_S", 1.0)

    def cut(state: str, done: int, total: int) -> None:
        if state == "updating" and not link.lost:
            link.cut = True
            asyncio.get_running_loop().call_later(4.0, setattr, link, "cut", False)

    waits = (0.5,) * 60
    done = await push_bundle(make_bundle(1), "board", connecting(link, 1.0), progress=cut, retries_s=waits)
    assert done.result is UpdateResult.SUCCESS and "is in use, place a" in done.message and done.links_lost >= 1
    assert digest(tmp_path) == done.digest
    assert not (tmp_path / "board" / "slot" / "b").exists(), "it was installed once"


async def test_a_deploy_over_ssh_outlives_a_cut_of_twelve_seconds(
    link: BadLink, make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSH's server at the other end of a link that loses one packet in a hundred, and for a while all."""
    need_sshd()
    server = Sshd(tmp_path / "sshd", link.address, link.inside())
    server.start()
    try:
        prefix = server.home / ssh.PREFIX
        prefix.mkdir(parents=True)
        (prefix / "venv").symlink_to(sys.prefix)  # what a setup would have brought
        (prefix / HOME).symlink_to(tmp_path / "board" / HOME)
        person = tmp_path / "person" / ".ssh"
        person.mkdir(parents=True, mode=0o700)
        (person / "config").write_text(f"Host {link.address}\n  User root\n  IdentityFile {server.key}\n")
        monkeypatch.setenv("HOME", str(person.parent))
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        monkeypatch.setattr(ssh, "KEEPALIVE_S", 1.0)
        monkeypatch.setattr(ssh, "CONNECT_S", 3.0)
        monkeypatch.setattr(push, "CHUNK", 300)
        monkeypatch.setattr(push, "UNDER_WAY", 2)
        link.loss = 0.01
        address = target.Target(link.address, port=server.port)
        cut: list[int] = []

        def progress(state: str, done: int, total: int) -> None:
            if state == "downloading" and done and not cut:
                cut.append(done)
                link.cut = True
                asyncio.get_running_loop().call_later(12.0, setattr, link, "cut", False)

        def connect() -> contextlib.AbstractAsyncContextManager[AgentClient]:
            return ssh.connect(address, server.fingerprint)

        done = await push_bundle(make_bundle(1), "board", connect, progress=progress, retries_s=(0.5,) * 60)
        assert done.result is UpdateResult.SUCCESS and done.links_lost >= 1 and done.seconds > 12, done
        assert done.bytes_sent <= done.bytes_bundle + 2 * 300 * done.links_lost, "what had arrived was not sent again"
        assert open_bundle(current_bundle(prefix / "slot"), None).digest == done.digest
    finally:
        server.stop()
