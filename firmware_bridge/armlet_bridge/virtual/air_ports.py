"""Ports of the virtual air: sockets for Bluetooth hosts, and a virtual adapter of this machine's kernel."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bumble import hci
from bumble.core import InvalidPacketError
from bumble.transport.common import PacketParser

from armlet_runtime.errors import UsageError, WearableError

from .air import AirController, AirLink

MAX_PORT = 65535

# Linux's virtual controllers (drivers/bluetooth/hci_vhci.c): the packet that makes a controller, with BR/EDR.
VHCI = "/dev/vhci"
_VHCI_CREATE = bytes([0xFF, 0x00])


class _HostPort(asyncio.Protocol):
    """A host on a socket, with a controller of its own that leaves the air with it; H4 framing both ways."""

    def __init__(self, air: AirLink, ports: set[_HostPort]) -> None:
        self._air = air
        self._ports = ports

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._ports.add(self)
        self._transport = transport
        self._controller = AirController("host", self._air)
        self._controller.set_packet_sink(self)
        self._parser = PacketParser(self._controller)

    def on_packet(self, packet: bytes) -> None:
        """From the controller to the host."""
        self._transport.write(packet)  # type: ignore[attr-defined]  # sockets have it, BaseTransport does not say so

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except InvalidPacketError:  # the peer does not speak H4
            self.close()

    def connection_lost(self, _error: Exception | None) -> None:
        self._ports.discard(self)
        self._controller.set_packet_sink(None)
        self._controller.power_off()

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()


class KernelPort:
    """A controller that this machine's kernel, and so BlueZ, has as one of its adapters. Needs root and ``hci_vhci``.

    Attributes:
        controller: On the air.
    """

    def __init__(self, air: AirLink) -> None:
        """Plug the controller in.

        Raises:
            WearableError: The kernel accepts no virtual controllers.
        """
        try:
            self._vhci = os.open(VHCI, os.O_RDWR | os.O_NONBLOCK)
        except OSError as error:
            raise WearableError(
                f"cannot give the kernel a virtual adapter ({VHCI}: {error.strerror}): run 'modprobe hci_vhci', as root"
            ) from None
        self.controller = AirController("kernel", air)
        # The kernel would wait for the enhanced events of these, which bumble's controller does not send.
        self.controller.le_features &= ~(hci.LeFeatureMask.LL_PRIVACY | hci.LeFeatureMask.LE_EXTENDED_ADVERTISING)
        self.controller.set_packet_sink(self)
        self._parser = PacketParser(self.controller)
        os.write(self._vhci, _VHCI_CREATE)
        asyncio.get_running_loop().add_reader(self._vhci, self._readable)

    def on_packet(self, packet: bytes) -> None:
        """From the controller to the kernel."""
        os.write(self._vhci, packet)

    def _readable(self) -> None:
        packet = os.read(self._vhci, 4096)
        if packet[:1] != _VHCI_CREATE[:1]:  # otherwise it holds the adapter's number
            self._parser.feed_data(packet)

    def close(self) -> None:
        """Unplug the controller."""
        asyncio.get_running_loop().remove_reader(self._vhci)
        self.controller.set_packet_sink(None)
        self.controller.power_off()
        os.close(self._vhci)


@asynccontextmanager
async def serve(air: AirLink, spec: str) -> AsyncIterator[str]:
    """Listen for Bluetooth hosts; each host gets a virtual controller on the air (HCI, H4 framing).

    Args:
        air: The air that the controllers share.
        spec: ``tcp-server:HOST:PORT`` (port 0 takes a free one), ``unix-server:PATH``, or ``vhci`` for this machine's
            kernel as the only host.

    Yields:
        The transport that a host opens, ``tcp-client:HOST:PORT`` or ``unix-client:PATH``; ``system`` for the kernel's.

    Raises:
        UsageError: The spec is not of these forms.
        WearableError: The address cannot be listened on, or the kernel takes no virtual adapter.
    """
    if spec == "vhci":
        kernel = KernelPort(air)
        try:
            yield "system"
        finally:
            kernel.close()
        return
    kind, _, where = spec.partition(":")
    host, _, port = where.rpartition(":")
    loop = asyncio.get_running_loop()
    ports: set[_HostPort] = set()
    try:
        if kind == "tcp-server" and host and port.isdecimal() and int(port) <= MAX_PORT:
            server = await loop.create_server(lambda: _HostPort(air, ports), host, int(port), family=socket.AF_INET)
            client = f"tcp-client:{host}:{server.sockets[0].getsockname()[1]}"
        elif kind == "unix-server" and where:
            server = await loop.create_unix_server(lambda: _HostPort(air, ports), where)
            client = f"unix-client:{where}"
        else:
            raise UsageError(f"cannot listen on '{spec}': give tcp-server:HOST:PORT, unix-server:PATH or vhci")
    except OSError as error:
        raise WearableError(f"cannot listen on '{spec}': {error.strerror or error}") from None
    try:
        yield client
    finally:
        server.close()
        for host_port in tuple(ports):
            host_port.close()
        if kind == "unix-server":
            Path(where).unlink(missing_ok=True)
