"""Sinks against the real thing: a broker, an inlet of the Lab Streaming Layer. Their failures."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from armlet_runtime.checks.export_proof import Draft
from armlet_runtime.decisions import Decision
from armlet_runtime.errors import MissingExtraError, UsageError
from armlet_runtime.live.core import LiveCore
from armlet_runtime.live.sinks import LslSink, MqttSink, Sinks, mqtt_login
from armlet_runtime.model.bundle_model import BundleModel

LABELS = ("still", "walking")


def decision(index: int, label: str | None = "still") -> Decision:
    now_ns = time.monotonic_ns()
    scores = (0.75, 0.25) if label else ()
    reason = None if label else "no sensor"
    return Decision(
        index, now_ns - 30_000_000_000, now_ns, ("acc",), label, scores, (), {}, {}, "litert", reason, label
    )


@pytest.fixture
def core(small_draft: Path) -> Iterator[LiveCore]:
    draft = Draft(small_draft)
    model = BundleModel(draft.manifest, draft.read, "litert")
    yield LiveCore(model)
    model.close()


def wait_for(condition: Callable[[], Any], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


BROKER = """
import asyncio, sys
from amqtt.broker import Broker

async def main():
    await Broker({
        "listeners": {"default": {"type": "tcp", "bind": "127.0.0.1:" + sys.argv[1]}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }).start()
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


class RealBroker:
    """An amqtt broker in a process, so that it can be killed as brokers are, and started again on the same port."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-c", BROKER, str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None and self._process.stdout.readline() == "ready\n"

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def broker() -> Iterator[RealBroker]:
    pytest.importorskip("paho.mqtt.client", reason="pip install 'armlet[mqtt]'")
    pytest.importorskip("amqtt", reason="pip install 'armlet[dev]'")
    one = RealBroker()
    yield one
    one.kill()


def subscriber(port: int, topic: str) -> tuple[Any, list[bytes]]:
    from paho.mqtt import client as mqtt

    heard: list[bytes] = []
    ready = threading.Event()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.on_subscribe = lambda *_: ready.set()
    client.on_message = lambda _client, _data, message: heard.append(message.payload)
    client.connect("127.0.0.1", port)
    client.subscribe(topic, qos=1)
    client.loop_start()
    assert ready.wait(10)
    return client, heard


def test_a_broker_gets_every_decision(broker: RealBroker) -> None:
    client, heard = subscriber(broker.port, "home/arm/left")
    sink = MqttSink(f"mqtt://127.0.0.1:{broker.port}/home/arm/left")
    sent = [decision(index) for index in range(20)]
    for one in sent:
        sink.send(one, LABELS)
    wait_for(lambda: len(heard) == 20)
    assert heard == [one.to_json() for one in sent]
    report = sink.close()
    assert (report.sent, report.lost, report.problem) == (20, 0, "")
    assert report.sink == f"mqtt://127.0.0.1:{broker.port}/home/arm/left"
    client.disconnect()
    client.loop_stop()


def test_a_broker_that_goes_away_loses_nothing_that_can_wait(
    broker: RealBroker, core: LiveCore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="armlet_runtime")
    sink = MqttSink(f"mqtt://127.0.0.1:{broker.port}/t")
    sinks = Sinks([sink], core)
    wait_for(lambda: sink.problem == "")
    sinks.decision(decision(0))
    broker.kill()
    wait_for(lambda: sink.problem != "")
    assert sinks.news() != [] and sinks.news() == []
    began = time.monotonic()
    for index in range(1, 6):
        sinks.decision(decision(index))
    assert time.monotonic() - began < 5  # nobody waits for a broker
    broker.start()
    wait_for(lambda: sinks.news() == [f"{sink.name}: takes decisions"])
    sinks.close()
    (report,) = sinks.reports
    assert (report.sent, report.lost) == (6, 0)
    story = [record.getMessage().removeprefix(f"{sink.name}: ") for record in caplog.records]
    assert story[0] == story[-1] == "connected" and any("lost" in line for line in story[1:-1]), story


def test_without_a_broker_what_is_lost_is_counted(core: LiveCore) -> None:
    pytest.importorskip("paho.mqtt.client", reason="pip install 'armlet[mqtt]'")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, not listening: refused
        sink = MqttSink(f"mqtt://127.0.0.1:{nobody.getsockname()[1]}/t")
        sinks = Sinks([sink], core)
        wait_for(lambda: any("the broker cannot be reached" in told for told in sinks.news()))
        for index in range(1500):
            sinks.decision(decision(index))
        sinks.close()
    (report,) = sinks.reports
    assert (report.sent, report.lost, report.problem) == (0, 1500, "the broker cannot be reached")


@pytest.mark.parametrize(
    "url",
    [
        "host/topic",
        "http://host/topic",
        "mqtt://host",
        "mqtt:///topic",
        "mqtt://host:x/t",
        "mqtt://h/a/#",
        "mqtt://h/+",
    ],
)
def test_what_is_no_mqtt_url_is_said(url: str) -> None:
    with pytest.raises(UsageError, match="--mqtt"):
        MqttSink(url)


@pytest.fixture(scope="module")
def pylsl() -> Any:
    try:
        import pylsl
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"the Lab Streaming Layer does not load here: {error}")
    return pylsl


def test_an_inlet_hears_scores_and_labels(pylsl: Any) -> None:
    sink = LslSink("armlet-test", 0.5, LABELS)
    inlets = []
    for name in ("armlet-test", "armlet-test labels"):
        found = pylsl.resolve_byprop("name", name, timeout=10)
        if not found:
            pytest.skip("no multicast here, by which streams of the Lab Streaming Layer are found")
        inlets.append(pylsl.StreamInlet(found[0]))
        inlets[-1].open_stream(10)
    scores, labels = inlets
    description = scores.info().desc().child("channels").child("channel")
    assert description.child_value("label") == "still" and scores.info().nominal_srate() == 2.0
    one, none = decision(0), decision(1, None)
    sink.send(one, LABELS)
    sink.send(none, LABELS)
    for sent, want, name in ((one, [0.75, 0.25], "still"), (none, [math.nan] * 2, "(no sensor)")):
        values, stamp = scores.pull_sample(10)
        assert values == pytest.approx(want, nan_ok=True)
        # On Linux the layer's clock is the monotonic one: the stamp is the window's end, half a minute ago.
        assert stamp == pytest.approx(sent.window_end_ns / 1e9, abs=5)
        assert labels.pull_sample(10) == ([name], stamp)
    sink.send(decision(2), (*LABELS, "wave"))  # with other labels than scores: lost, and said
    assert sink.problem != ""
    report = sink.close()
    assert (report.sent, report.lost) == (2, 1) and report.problem != "" and report.sink == "lsl armlet-test"


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pylsl", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'armlet\[lsl\]'"):
        LslSink("x", 0.5, LABELS)
    with pytest.raises(UsageError, match="needs a name"):
        LslSink(" ", 0.5, LABELS)


@pytest.mark.parametrize(
    "url",
    [
        "mqtt://ann:s3cret@host/topic",
        "mqtt://ann:s3cret@host:x/topic",
        "http://ann:s3cret@host/topic",
        "mqtt:ann:s3cret@host/topic",
        "mqtt://ann:s3cret@host/a/#",
    ],
)
def test_a_password_in_a_url_is_refused_and_not_repeated(url: str, armlet_home: Path) -> None:
    with pytest.raises(UsageError) as refused:
        MqttSink(url)
    assert "s3cret" not in str(refused.value) and str(armlet_home / "mqtt.login") in str(refused.value)


def test_user_and_password_come_from_the_environment_or_a_private_file(
    armlet_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mqtt_login() is None
    armlet_home.mkdir()
    path = armlet_home / "mqtt.login"
    path.write_text("ann:s3:cret\n")
    path.chmod(0o640)
    with pytest.raises(UsageError, match=r"chmod 600") as open_to_others:
        mqtt_login()
    assert "s3:cret" not in str(open_to_others.value)
    path.chmod(0o600)
    assert mqtt_login() == ("ann", "s3:cret")
    monkeypatch.setenv("ARMLET_MQTT_USER", "bob")
    assert mqtt_login() == ("bob", None)
    monkeypatch.setenv("ARMLET_MQTT_PASSWORD", "other")
    assert mqtt_login() == ("bob", "other")
    monkeypatch.delenv("ARMLET_MQTT_USER")
    path.write_text("no colon")
    with pytest.raises(UsageError, match="USER:PASSWORD") as wrong:
        mqtt_login()
    assert "no colon" not in str(wrong.value)
