"""Sinks: destinations of decisions besides the terminal and files. MQTT and the Lab Streaming Layer.

A sink never stops or delays decisions: those that it cannot take are lost there, counted, and listed in the summary.
The package of a sink is imported when the sink is opened.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote, urlsplit

import msgspec

from ..bundle import home
from ..errors import MissingExtraError, UsageError
from .outputs import Output

if TYPE_CHECKING:
    from ..decisions import Decision
    from .core import LiveCore

log = logging.getLogger(__name__)


class SinkReport(msgspec.Struct, frozen=True):
    """Numbers of the decisions that a sink delivered and lost.

    Attributes:
        sink: Kind and address of the sink.
        sent: Decisions acknowledged by the MQTT broker, or handed to the Lab Streaming Layer.
        lost: The other decisions.
        problem: The last problem; empty if there was no problem.
    """

    sink: str
    sent: int
    lost: int
    problem: str


class Sink(Protocol):
    """Takes decisions; no method of an open sink raises."""

    @property
    def name(self) -> str:
        """Kind and address of the sink."""

    @property
    def problem(self) -> str:
        """The present problem; empty if the sink works."""

    def send(self, decision: Decision, labels: Sequence[str]) -> None:
        """Take a decision without waiting. ``labels``: names of its scores."""

    def close(self) -> SinkReport:
        """Close the sink, after at most a few seconds for decisions under way."""


class MqttSink:
    """Publishes each decision with quality of service 1, as the JSON that ``--decisions`` writes.

    A thread keeps the connection up. While it is down, up to :data:`MAX_WAITING` decisions wait; further ones are lost.
    """

    def __init__(self, url: str) -> None:
        """Begin to connect.

        Args:
            url: ``mqtt://HOST[:PORT]/TOPIC``, or ``mqtts://`` for TLS by the system's authorities. User and password
                come from :func:`mqtt_login`.

        Raises:
            UsageError: The URL has another form, or the login cannot be read.
            MissingExtraError: paho-mqtt is not installed.
        """
        host, port, self._topic, tls = mqtt_address(url)
        login = mqtt_login()
        mqtt = _module("paho.mqtt.client", "mqtt")
        self.name = f"{'mqtts' if tls else 'mqtt'}://{host}:{port}/{self._topic}"
        self._accepted = self._sent = 0
        self.problem = "not connected yet"
        self._acknowledged = threading.Condition()
        self._client = client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.max_queued_messages_set(MAX_WAITING)
        client.reconnect_delay_set(1, 30)
        if login is not None:
            client.username_pw_set(*login)
        if tls:
            client.tls_set()
        client.connect_async(host, port, keepalive=30)
        client.loop_start()

    def _on_connect(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        self._report(f"the broker refused: {reason}" if reason.is_failure else "")

    def _on_connect_fail(self, client: Any, data: Any) -> None:
        self._report("the broker cannot be reached")

    def _on_disconnect(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure and not self.problem:
            self._report(f"the connection was lost: {reason}")

    def _on_publish(self, client: Any, data: Any, mid: Any, reason: Any, properties: Any) -> None:
        with self._acknowledged:
            if reason.is_failure:
                self._report(f"the broker refused a decision: {reason}")
            else:
                self._sent += 1
            self._acknowledged.notify()

    def _report(self, problem: str) -> None:
        if problem != self.problem:
            log.info("%s: %s", self.name, problem or "connected")
        self.problem = problem

    def send(self, decision: Decision, labels: Sequence[str]) -> None:
        """Publish a decision."""
        self._accepted += 1
        # Without a connection it waits in the client's queue; with a full queue it is neither sent nor acknowledged.
        self._client.publish(self._topic, decision.to_json(), qos=1)

    def close(self) -> SinkReport:
        """Wait for acknowledgements under way, and disconnect."""
        with self._acknowledged:
            self._acknowledged.wait_for(lambda: self._sent == self._accepted or bool(self.problem), LAST_WAIT_S)
        self._client.disconnect()
        self._client.loop_stop()
        lost = self._accepted - self._sent
        return SinkReport(self.name, self._sent, lost, self.problem)


MAX_WAITING = 1000
"""Decisions that wait for the broker: at three a second, five minutes."""

LAST_WAIT_S = 3.0
"""Longest wait for the broker's last acknowledgements at the end of a run."""


LOGIN_FILE = "mqtt.login"
"""File in the home of keys with ``USER:PASSWORD`` for the broker."""


def mqtt_address(url: str) -> tuple[str, int, str, bool]:
    """Host, port, topic, and whether TLS is used.

    Raises:
        UsageError: ``url`` is not the URL of a topic to publish on, or holds a password, which the message leaves out.
    """
    if "@" in url.partition("://")[2].partition("/")[0] or ("@" in url and "://" not in url):
        raise UsageError(
            "--mqtt: user and password on a command line can be read by every user of this machine; write "
            f"USER:PASSWORD into {home() / LOGIN_FILE} (chmod 600), and give mqtt://HOST[:PORT]/TOPIC"
        )
    usage = f"--mqtt {url}: give mqtt://HOST[:PORT]/TOPIC, or mqtts:// for TLS"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"{usage} ({error})") from None
    topic = unquote(parts.path.removeprefix("/"))
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or not topic:
        raise UsageError(usage)
    if parts.query or "#" in url or "+" in topic or "#" in topic or "\0" in topic or len(topic.encode()) > 65535:
        raise UsageError(f"--mqtt {url}: a topic to publish on has neither '+' nor '#'")
    tls = parts.scheme == "mqtts"
    return parts.hostname, port or (8883 if tls else 1883), topic, tls


def mqtt_login() -> tuple[str, str | None] | None:
    """User and password for the broker; None for a broker without a login.

    They come from ``ARMLET_MQTT_USER`` and ``ARMLET_MQTT_PASSWORD`` of the environment, else from the file
    :data:`LOGIN_FILE` in the home of keys.

    Raises:
        UsageError: The file cannot be read, other users may read it, or it does not hold ``USER:PASSWORD``.
    """
    user = os.environ.get("ARMLET_MQTT_USER")
    if user:
        return user, os.environ.get("ARMLET_MQTT_PASSWORD")
    path = home() / LOGIN_FILE
    try:
        with path.open() as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise UsageError(f"other users may read {path}: chmod 600 {path}")
            name, colon, password = file.read().strip().partition(":")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    if not colon:
        raise UsageError(f"{path} must hold USER:PASSWORD")
    return name, password


class LslSink:
    """Two streams of the Lab Streaming Layer: scores, and labels as markers.

    ``NAME`` (type ``Scores``) has a channel for each label, which is NaN where there is no decision; ``NAME labels``
    (type ``Markers``) has the label, or in brackets the reason for no label. Both are stamped with the window's end.
    """

    def __init__(self, name: str, hop_s: float, labels: Sequence[str]) -> None:
        """Announce the streams, with a decision every ``hop_s`` seconds; ``labels``: names of the scores.

        Raises:
            UsageError: The name is empty.
            MissingExtraError: pylsl, or the library that it loads, is not installed.
        """
        if not name.strip():
            raise UsageError("--lsl needs a name for the streams")
        self._lsl = lsl = _module("pylsl", "lsl")
        self.name, self._stream, self._hop_s = f"lsl {name}", name, hop_s
        self._sent = self._lost = 0
        self.problem = ""
        self._markers = lsl.StreamOutlet(
            lsl.StreamInfo(f"{name} labels", "Markers", 1, lsl.IRREGULAR_RATE, "string", f"armlet {name} labels")
        )
        self._labels: Sequence[str] = ()
        self._open(labels)

    def _open(self, labels: Sequence[str]) -> None:
        lsl = self._lsl
        info = lsl.StreamInfo(
            self._stream, "Scores", len(labels), 1 / self._hop_s, "float32", f"armlet {self._stream} {len(labels)}"
        )
        channels = info.desc().append_child("channels")
        for label in labels:
            channel = channels.append_child("channel")
            channel.append_child_value("label", label)
            channel.append_child_value("unit", "probability")
            channel.append_child_value("type", "score")
        self._scores, self._labels = lsl.StreamOutlet(info), tuple(labels)

    def send(self, decision: Decision, labels: Sequence[str]) -> None:
        """Push a decision."""
        try:
            if tuple(labels) != self._labels:  # a class was enrolled, or another bundle taken up
                self._open(labels)
            # The layer's clock has another origin than the monotonic clock of the decisions.
            stamp = self._lsl.local_clock() - (time.monotonic_ns() - decision.window_end_ns) / 1e9
            scores = list(decision.scores) or [math.nan] * len(self._labels)
            self._scores.push_sample(scores, stamp)
            self._markers.push_sample([decision.label or f"({decision.reason})"], stamp)
            self._sent += 1
            self.problem = ""
        except Exception as error:  # whatever the library does, decisions go on
            self._lost += 1
            if not self.problem:
                log.info("%s takes no decision", self.name, exc_info=True)
            self.problem = f"{type(error).__name__}: {error}"

    def close(self) -> SinkReport:
        """End the streams."""
        del self._scores, self._markers
        return SinkReport(self.name, self._sent, self._lost, self.problem)


def _module(name: str, extra: str) -> ModuleType:
    """Import the package of a sink.

    Raises:
        MissingExtraError: The package is not installed, or does not load.
    """
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingExtraError(f"this sink needs a package: pip install 'armlet[{extra}]'") from None
    except (OSError, RuntimeError) as error:  # pylsl without its library
        raise MissingExtraError(f"the library of '{name}' does not load: {str(error).splitlines()[0]}") from error


class Sinks(Output):
    """The sinks of a run.

    Attributes:
        reports: Reports of the sinks that were closed.
    """

    def __init__(self, sinks: Sequence[Sink], core: LiveCore) -> None:
        """``sinks``: closed with the output; ``core``: for the names of the scores."""
        self.reports: list[SinkReport] = []
        self._sinks, self._core = list(sinks), core
        self._reported = dict.fromkeys((sink.name for sink in sinks), "")

    def decision(self, decision: Decision) -> None:
        """Send a decision to all sinks."""
        for sink in self._sinks:
            sink.send(decision, self._core.labels)

    def news(self) -> list[str]:
        """A sentence on each sink whose problem has changed since the last call."""
        sentences = []
        for sink in self._sinks:
            problem = sink.problem
            if problem != self._reported[sink.name]:
                self._reported[sink.name] = problem
                sentences.append(f"{sink.name}: {problem or 'takes decisions'}")
        return sentences

    def close(self) -> None:
        """Close all sinks."""
        while self._sinks:
            self.reports.append(self._sinks.pop(0).close())


def open_sinks(mqtt: str | None, lsl: str | None, core: LiveCore) -> Sinks:
    """Open the sinks of a command line; arguments and errors as for :class:`MqttSink` and :class:`LslSink`."""
    sinks: list[Sink] = []
    if lsl is not None:
        sinks.append(LslSink(lsl, core.model.manifest.window.hop_s, core.labels))
    if mqtt is not None:
        sinks.append(MqttSink(mqtt))
    return Sinks(sinks, core)
