"""The page of a live run: who may see it, what it shows in a real browser, and what it can ask for."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from armlet_runtime.bundle.certificate import CertificateRow
from armlet_runtime.checks.export_proof import Draft
from armlet_runtime.cli import main
from armlet_runtime.errors import UsageError
from armlet_runtime.live.core import LiveCore
from armlet_runtime.live.open_bundle import open_model
from armlet_runtime.live.page_controls import RunControls
from armlet_runtime.live.run import Run
from armlet_runtime.model.bundle_model import BundleModel
from armlet_runtime.model.policy import Policy
from armlet_runtime.signals.recorder import Recorder
from armlet_runtime.signals.recording_reader import read_recording
from armlet_runtime.views.page_access import MAX_STRANGERS, TOKEN_FILE
from armlet_runtime.views.page_address import parse_address
from armlet_runtime.views.web import MAX_PAGES, Page, serve_page
from tests.support.small_bundle import SmallBundle

from .browser import browser
from .test_live_commands import ARMLET, lines, wearables
from .test_view import replayed


@asynccontextmanager
async def page(
    draft: Path, address: str, controls: RunControls | None = None, core: LiveCore | None = None
) -> AsyncIterator[tuple[Page, str]]:
    """A page of a replay; with ``controls``, of the run that ``core`` belongs to."""
    made = Draft(draft)
    model = BundleModel(made.manifest, made.read, "litert")
    monitor, _, end_ns = replayed(model, core)
    async with serve_page(parse_address(address), monitor, model.manifest.modalities, controls) as served:
        served.tick(end_ns - 10**9)
        served.tick(end_ns)
        yield served, re.sub(r"#.*", "", served.url.removeprefix("http://")).rstrip("/")
    model.close()


@pytest.fixture
def own_bundle(small_bundle: SmallBundle, tmp_path: Path) -> SmallBundle:
    """A copy of the small bundle: classes that a test enrols are kept beside it, and must not meet other tests."""
    path = tmp_path / "bundle" / small_bundle.path.name
    path.parent.mkdir()
    shutil.copy(small_bundle.path, path)
    return dataclasses.replace(small_bundle, path=path)


@pytest.fixture
def run(own_bundle: SmallBundle, armlet_home: Path) -> Iterator[Run]:
    """A run of the small bundle, as 'armlet run' makes it."""
    opened = open_model(str(own_bundle.path), [own_bundle.public_key_path], "litert")
    with Run(opened, LiveCore(opened.model, policy=opened.policy)) as made:
        yield made
    opened.model.close()


def live(host: str, **options: Any) -> connect:
    return connect(f"ws://{host}/live", **{"origin": f"http://{host}", **options})


async def fetch(url: str, **headers: str) -> tuple[int, str, dict[str, str]]:
    def get() -> tuple[int, str, dict[str, str]]:
        try:
            with urlopen(Request(url, headers=headers), timeout=10) as answer:
                return answer.status, answer.read().decode(), dict(answer.headers)
        except HTTPError as error:
            return error.code, error.read().decode(), dict(error.headers)

    return await asyncio.to_thread(get)


async def answer(connection: ClientConnection, command: dict[str, Any] | str) -> dict[str, str]:
    """What is answered to a command, among the pictures."""
    await connection.send(command if isinstance(command, str) else json.dumps(command))
    while True:
        message: dict[str, Any] = json.loads(await asyncio.wait_for(connection.recv(), 10))
        if "notice" in message or "error" in message:
            return message


def test_addresses() -> None:
    assert parse_address("8000").host == "127.0.0.1" and parse_address("[::1]:8000").loopback
    assert parse_address("localhost:1").loopback and not parse_address("0.0.0.0:1").loopback
    for text in ("file:board", "1.2.3.4", "host:", ":80", "host:99999", ""):
        with pytest.raises(UsageError, match="give HOST:PORT"):
            parse_address(text)


async def test_a_page_is_given_to_this_host_only(small_draft: Path) -> None:
    async with page(small_draft, "127.0.0.1:0") as (_, host):
        status, text, headers = await fetch(f"http://{host}/")
        assert status == 200 and "<title>armlet</title>" in text and 'if ("" && ' in text
        # One file that refers to nothing, and may ask nobody else for anything.
        assert not re.search(r"(src|href)=[\"'](?!data:)", text) and "@NONCE@" not in text
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and f"connect-src 'self' ws://{host} wss://{host};" in policy
        assert headers["Cache-Control"] == "no-store" and "Server" not in headers
        assert (await fetch(f"http://{host}/other"))[:2] == (404, "armlet: the only page here is /\n")
        port = host.partition(":")[2]
        assert (await fetch(f"http://localhost:{port}/"))[0] == 200
        assert (await fetch(f"http://{host}/", Host="localhost:9000"))[0] == 200  # a tunnel from another port
        for name in ("evil.example", f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", "localhost; x", "[::1"):
            status, text, _ = await fetch(f"http://{host}/", Host=name)
            assert status == 403 and text.startswith("armlet: this is not ") and text.count("\n") == 1


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "http://localhost:{port}", "http://127.0.0.1:1"]
)
async def test_pages_of_others_may_not_look(origin: str | None, small_draft: Path) -> None:
    async with page(small_draft, "127.0.0.1:0") as (_, host):
        said = origin and origin.format(host=host, port=host.partition(":")[2])
        with pytest.raises(InvalidStatus) as refused:
            async with live(host, origin=said):
                pass
        assert refused.value.response.status_code == 403
        assert b"may not look at this run" in (refused.value.response.body or b"")


async def test_what_a_page_shows_and_asks_for(
    small_draft: Path, own_bundle: SmallBundle, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Recorder() as recorder:
        controls = RunControls(run, str(own_bundle.path), "litert", recorder)
        async with page(small_draft, "127.0.0.1:0", controls, run.core) as (served, host), live(host) as connection:
            hello = json.loads(await connection.recv())["hello"]
            assert [one["name"] for one in hello["modalities"]] == ["acc", "gyro"] and hello["can_enrol"]
            picture = json.loads(await connection.recv())
            assert picture["state"]["bundle"] == "small 1" and picture["state"]["newest"]["subset"] == ["acc"]
            before, values = picture["signals"]["acc"]
            assert len(before) == len(values) > 90 and -2.0 <= before[0] < before[-1] <= 0 and len(values[0]) == 3
            assert picture["signals"]["gyro"] == [[], []] or picture["signals"]["gyro"][0][-1] < -1.9
            notice = (await answer(connection, {"do": "record"}))["notice"]
            (recording,) = tmp_path.glob("armlet-*.mcap")
            assert notice == f"Recording to {recording}."
            assert "is being recorded already" in (await answer(connection, {"do": "record"}))["error"]
            served.tick(served.now_ns + 1)
            while not (picture := json.loads(await connection.recv())).get("recording"):
                pass
            assert picture["recording"] == str(recording) and picture["signals"]["acc"] == [[], []]  # sent already
            learned = await answer(connection, {"do": "enrol", "name": "jump", "seconds": 2})
            assert learned["notice"].startswith("Learned 'jump' from 3 windows.")
            assert run.core.labels == ("lying", "sitting", "standing", "walking", "jump")
            error = (await answer(connection, {"do": "enrol", "name": "walking", "seconds": 2}))["error"]
            assert "'walking'" in error and len(run.core.labels) == 5
            assert await answer(connection, {"do": "stop"}) == {"notice": f"Recorded in {recording}."}
            assert (await answer(connection, {"do": "stop"}))["error"] == "nothing is being recorded"
            for nonsense in ("", "{", "[]", '{"do": 1}', '{"do": "record", "path": "/etc/passwd"}'):
                assert await answer(connection, nonsense) == {"error": "this is not a valid command"}
            assert (await answer(connection, {"do": "explode"}))["error"] == "'explode' is not a command of this page"
            with pytest.raises(ConnectionClosed):
                await answer(connection, "x" * 2000)
    assert read_recording(recording).meta["bundle"] == run.opened.bundle.digest


async def test_a_replay_has_no_controls_and_room_for_some_pages(small_draft: Path) -> None:
    async with page(small_draft, "127.0.0.1:0") as (_, host):
        connections = [await live(host) for _ in range(MAX_PAGES)]
        assert (await answer(connections[0], {"do": "record"}))["error"] == "a replay takes no commands"
        async with live(host) as one_more:
            with pytest.raises(ConnectionClosed, match="8 pages show this run already"):
                await one_more.recv()
        await connections[0].close()
        await asyncio.sleep(0.1)
        async with live(host) as instead:
            assert "hello" in json.loads(await instead.recv())
        for connection in connections:
            await connection.close()


async def test_another_address_asks_for_a_token(small_draft: Path, armlet_home: Path) -> None:
    async with page(small_draft, "0.0.0.0:0") as (served, host):
        kept = armlet_home / TOKEN_FILE
        token = kept.read_text().strip()
        assert served.url.endswith(f"/#{token}") and len(token) >= 32 and kept.stat().st_mode & 0o777 == 0o600
        # Reached by its loopback address here, because a test machine may have no other.
        host = f"127.0.0.1:{host.rpartition(':')[2]}"
        text = (await fetch(f"http://{host}/"))[1]
        assert token not in text and 'if ("needed" && location.hash' in text  # it is asked for before anything is
        for wrong in ("", "x" * 32, token + "x", token[:-1]):
            async with live(host) as connection:
                await connection.send(wrong)
                with pytest.raises(ConnectionClosed, match="this is not the token"):
                    await connection.recv()
        async with live(host) as connection:
            await connection.send(token)
            assert "hello" in json.loads(await connection.recv())
    async with page(small_draft, "0.0.0.0:0") as (served, _):
        assert served.url.endswith(f"/#{token}")  # an address stays good
    kept.write_text("short")
    with pytest.raises(UsageError, match=r"web\.token holds no token"):
        async with page(small_draft, "0.0.0.0:0"):
            pass


async def test_strangers_do_not_lock_the_owner_out(small_draft: Path, armlet_home: Path) -> None:
    async with page(small_draft, "0.0.0.0:0") as (served, host):
        token = served.url.rpartition("#")[2]
        host = f"127.0.0.1:{host.rpartition(':')[2]}"
        strangers = [await live(host) for _ in range(MAX_PAGES + MAX_STRANGERS)]  # none of them has a token to send
        async with live(host) as connection:
            await connection.send(token)
            assert "hello" in json.loads(await asyncio.wait_for(connection.recv(), 10))
        # The oldest were cut off, so that what strangers can take up has a bound.
        await asyncio.wait_for(strangers[0].wait_closed(), 10)
        for stranger in strangers:
            stranger.transport.abort()


async def test_a_tunnel_from_another_port(small_draft: Path) -> None:
    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*board.split(":"))
        await asyncio.gather(carry(reader, back), carry(there, writer))

    async with page(small_draft, "127.0.0.1:0") as (_, board):
        server = await asyncio.start_server(tunnel, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        assert (await fetch(f"http://localhost:{port}/"))[0] == 200
        async with live(f"localhost:{port}") as connection:
            assert "hello" in json.loads(await connection.recv())
        server.close()


async def test_pages_are_told_of_another_bundle(small_draft: Path) -> None:
    async with page(small_draft, "127.0.0.1:0") as (served, host), live(host) as connection:
        hello = json.loads(await connection.recv())["hello"]
        assert hello["certified"].keys() == {"acc"} and hello["points"]
        monitor = served._monitor
        row = CertificateRow("gyro", "litert", 0.7, 0.7, 0.0, 0.0, 1.0)
        monitor._core.become(monitor._core.model, Policy(certified={"gyro": row}))
        while "hello" not in (said := json.loads(await asyncio.wait_for(connection.recv(), 10))):
            assert "state" in said
        assert said["hello"]["certified"].keys() == {"gyro"} and said["hello"]["points"] == hello["points"]


async def test_an_address_that_is_taken_is_one_sentence(small_draft: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="cannot be listened on: "):
            async with page(small_draft, f"127.0.0.1:{taken.getsockname()[1]}"):
                pass


async def test_strangers_bytes_do_no_harm(small_draft: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with page(small_draft, "127.0.0.1:0") as (_, host):
        for data in (
            b"\0\xff" * 50,
            b"GET / HTTP/1.1\r\n\r\n",
            b"POST /live HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET " + b"a" * 20000,
        ):
            reader, writer = await asyncio.open_connection(*host.split(":"))
            writer.write(data)
            writer.write_eof()
            await asyncio.wait_for(reader.read(), 10)
            writer.close()
        assert (await fetch(f"http://{host}/"))[0] == 200
    assert capsys.readouterr().err == ""


# --- a real browser -------------------------------------------------------------------------------------------------


async def test_the_page_in_a_browser(
    played: Path,
    own_bundle: SmallBundle,
    tmp_path: Path,
    armlet_home: Path,
) -> None:
    with wearables(played, tmp_path, "--link-loss", "gyro:5:9") as bluetooth:
        command = ["run", str(own_bundle.path), "--key", str(own_bundle.public_key_path), "--bluetooth", bluetooth]
        command += ["--wearables", "any"]
        process = subprocess.Popen(
            [*ARMLET, *command, "--web", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True, cwd=tmp_path
        )
        try:
            assert process.stdout is not None
            url = next(found[0] for line in process.stdout if (found := re.search(r"http://\S+", line)))
            (tmp_path / "profile").mkdir()
            async with browser(tmp_path / "profile") as tab:
                await tab.open(url)
                await tab.wait_for("state && state.newest && state.newest.subset.length === 2")
                await tab.evaluate("document.getElementById('record').click()")
                await tab.wait_for("document.getElementById('notice').textContent.startsWith('Recording to')")
                await tab.wait_for("points.some(p => p.subset.length === 1)")
                await tab.wait_for("points.at(-1).subset.length === 2")
                await tab.evaluate(
                    "document.getElementById('name').value = '<b>jump</b>';"
                    "document.querySelector('#enrol button').click()"
                )
                await tab.wait_for("document.getElementById('notice').textContent.startsWith('Learned')")
                await tab.wait_for("state.labels.length === 5")
                await tab.evaluate("document.getElementById('record').click()")
                await tab.wait_for("document.getElementById('notice').textContent.startsWith('Recorded in')")
                await tab.wait_for(
                    "document.body.innerText.includes('on acc+gyro (certified macro-F1 0.50 on random numbers)')"
                )
                shown = await tab.evaluate("document.body.innerText")
                # Traces and lanes are drawn, in more than one colour.
                drawn = await tab.evaluate(
                    "[...document.querySelectorAll('canvas')].map(c => new Set(new Uint32Array("
                    "c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer)).size)"
                )
                await tab.screenshot(tmp_path / "page.png")
                await tab.resize(400, 800)
                assert await tab.evaluate("document.documentElement.scrollWidth") <= 400
                assert set(tab.requests) == {url, f"{url.replace('http', 'ws')}live"} and tab.errors == []
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
    assert process.returncode == 0
    assert len(drawn) == 3 and min(drawn) > 4
    assert (tmp_path / "page.png").stat().st_size > 20_000
    for text in ("small 1", "Armlet-Acc", "streaming", "ppm", "acc+gyro", "<b>jump</b>", "0.50"):
        assert text in shown, shown
    (recording,) = tmp_path.glob("armlet-*.mcap")
    model = [str(own_bundle.path), "--key", str(own_bundle.public_key_path)]
    assert main(["replay", str(recording), *model, "--decisions", str(tmp_path / "d.jsonl")]) == 0
    subsets = {"+".join(line["subset"]) for line in lines(tmp_path / "d.jsonl")}
    assert "acc+gyro" in subsets  # begun when all links were up already, and yet decoded


def certificate(folder: Path) -> ssl.SSLContext:
    """A context for a server with a certificate of its own making, for localhost."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(timezone.utc)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    pem = made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "proxy.pem").write_bytes(pem + secret)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "proxy.pem")
    return context


async def test_behind_a_proxy_that_adds_tls(small_draft: Path, armlet_home: Path, tmp_path: Path) -> None:
    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, ssl.SSLError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(carry(reader, back), carry(there, writer))

    async with page(small_draft, "0.0.0.0:0") as (served, host):
        port, token = int(host.rpartition(":")[2]), served.url.rpartition("#")[2]
        server = await asyncio.start_server(proxy, "127.0.0.1", 0, ssl=certificate(tmp_path))
        # A name that is none of this machine's.
        url = f"https://board.example:{server.sockets[0].getsockname()[1]}/"
        (tmp_path / "profile").mkdir()
        options = ("--ignore-certificate-errors", "--host-resolver-rules=MAP board.example 127.0.0.1")
        async with browser(tmp_path / "profile", *options) as tab:
            await tab.open(f"{url}#{token}")
            await tab.wait_for("state && state.newest && state.newest.subset.length === 1")
            assert set(tab.requests) == {url, f"{url.replace('https', 'wss')}live"} and tab.errors == []
        server.close()


async def test_a_replay_on_a_page(own_bundle: SmallBundle, played: Path, tmp_path: Path) -> None:
    command = ["replay", str(played), str(own_bundle.path), "--key", str(own_bundle.public_key_path)]
    process = subprocess.Popen(
        [*ARMLET, *command, "--speed", "10", "--web", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        url = next(found[0] for line in process.stdout if (found := re.search(r"http://\S+", line)))
        async with live(url.removeprefix("http://").rstrip("/")) as connection:
            assert not json.loads(await connection.recv())["hello"]["controls"]
            while True:
                picture = json.loads(await asyncio.wait_for(connection.recv(), 20))
                if picture["state"]["decisions"] > 20:
                    break
        assert not picture["state"]["live"] and picture["state"]["wearables"][0]["state"] == "linked"
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0 and "0 missed" in told
