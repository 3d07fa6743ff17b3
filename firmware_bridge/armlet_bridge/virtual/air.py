"""The virtual air: bumble's virtual controllers and link, corrected so that a wearable can leave and return.

bumble 0.0.236's own link knows neither distance nor loss, and its controller has gaps that a central meets in practice:
a cancelled connect is never forgotten, a reset keeps the links, a scan response repeats the advertisement, and data are
sent from the controller's present address instead of the connection's. The two subclasses here correct exactly these.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from bumble import hci, ll
from bumble.controller import Connection, Controller
from bumble.core import PhysicalTransport
from bumble.link import LocalLink

# Units of HCI and LL fields (Core specification, Vol 4, Part E, 7.8.12).
SUPERVISION_UNIT_S = 0.01
INTERVAL_UNIT_S = 0.00125
# A central gives up a new link that stays silent for six connection intervals (Vol 6, Part B, 4.5.2).
ESTABLISH_INTERVALS = 6
# Used if a link's own supervision timeout was not seen; it is also what bumble asks for.
DEFAULT_SUPERVISION_S = 0.72

_ATT_CID = 4
_ATT_NOTIFICATION = 0x1B
_L2CAP_HEAD = struct.Struct("<HH")
_NOTIFICATION_HEAD = struct.Struct("<BH")


class AirLink(LocalLink):  # type: ignore[misc]  # bumble is followed without types
    """The air between virtual controllers.

    A radio link repeats what was not acknowledged, so nothing is lost on a short absence: it arrives late. When the
    absence outlasts a link's supervision timeout, both ends report 0x08 and what was on its way is lost.

    Attributes:
        tamper: Called with the sender's name and the value of every ATT notification; returns the values that arrive in
            its place: none for a loss, two for a duplicate, other bytes for corruption. ``None`` changes nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tamper: Callable[[str, bytes], Iterable[bytes]] | None = None
        self._absent: dict[AirController, list[asyncio.TimerHandle]] = {}
        self._held: list[tuple[AirController, AirController, Callable[[], None]]] = []
        self._supervision_s: dict[tuple[str, str], float] = {}
        self._interval_s: dict[tuple[str, str], float] = {}

    # What LocalLink's callers use.

    def send_advertising_pdu(self, sender_controller: AirController, packet: Any) -> None:
        """Let every controller in range hear a packet of the advertising channels."""
        if sender_controller in self._absent:
            return
        loop = asyncio.get_running_loop()
        for controller in self.controllers - {sender_controller} - self._absent.keys():
            loop.call_soon(controller.on_ll_advertising_pdu, packet)
        if isinstance(packet, ll.ConnectInd):
            ends = str(packet.initiator_address), str(packet.advertiser_address)
            self._supervision_s[ends] = packet.timeout * SUPERVISION_UNIT_S
            self._interval_s[ends] = packet.interval * INTERVAL_UNIT_S
            loop.call_later(
                ESTABLISH_INTERVALS * self._interval_s[ends],
                self._check_established,
                sender_controller.le_connections[packet.advertiser_address],
            )

    def send_acl_data(
        self, sender_controller: AirController, destination_address: hci.Address, transport: Any, data: bytes
    ) -> None:
        """Send an L2CAP frame over a link; the source is the link's own address."""
        if transport != PhysicalTransport.LE:
            super().send_acl_data(sender_controller, destination_address, transport, data)
            return
        connection = sender_controller.le_connections.get(destination_address)
        peer = connection and self._peer(connection)
        if not peer:
            return
        for frame in self._tampered(sender_controller.name, data):

            def arrive(frame: bytes = frame) -> None:
                peer.controller.on_link_acl_data(connection.self_address, transport, frame)

            self._deliver(sender_controller, peer.controller, arrive)

    def send_ll_control_pdu(self, sender_address: hci.Address, receiver_address: hci.Address, packet: Any) -> None:
        """Send a packet of the link's control channel; it is lost if the peer is gone.

        A host requests the features of a new link's peer. The answer comes with the next connection event, and
        bluetoothd needs the time until then to register the link.
        """
        sender = self.find_le_controller(sender_address)
        receiver = self.find_le_controller(receiver_address)
        if not sender or not receiver:
            return

        def arrive() -> None:
            self._deliver(sender, receiver, lambda: receiver.on_ll_control_pdu(sender_address, packet))

        if isinstance(packet, ll.FeatureRsp):
            ends = str(receiver_address), str(sender_address)
            asyncio.get_running_loop().call_later(self._interval_s.get(ends, 0.0), arrive)
        else:
            arrive()

    # Distance.

    def reaches(self, controller: AirController) -> bool:
        """Whether a controller is within everyone's reach."""
        return controller not in self._absent

    def scan_response_of(self, address: hci.Address) -> bytes:
        """Return the scan response of the advertiser with this address."""
        for controller in self.controllers:
            if controller.le_legacy_advertiser.enabled and controller.le_legacy_advertiser.address == address:
                return bytes(controller.le_legacy_advertiser.scan_response_data)
            for advertising in controller.advertising_sets.values():
                if advertising.enabled and advertising.address == address:
                    return bytes(advertising.scan_response_data)
        return b""

    def leave(self, controller: AirController) -> None:
        """Put a controller out of everyone's reach; its links time out unless it returns before."""
        if controller in self._absent:
            return
        loop = asyncio.get_running_loop()
        self._absent[controller] = [
            loop.call_later(self._supervision(connection), self._time_out, connection)
            for connection in controller.le_connections.values()
        ]

    def enter(self, controller: AirController) -> None:
        """Put a controller back into reach; what was held for its living links arrives now."""
        for timer in self._absent.pop(controller, []):
            timer.cancel()
        held, self._held = self._held, []
        for sender, receiver, action in held:
            self._deliver(sender, receiver, action)

    def remove_controller(self, controller: AirController) -> None:
        """Take a controller off the air, and what is known of its links."""
        super().remove_controller(controller)
        gone = {str(controller.public_address), str(controller.random_address)}
        self._supervision_s = {ends: s for ends, s in self._supervision_s.items() if not gone & set(ends)}
        self._interval_s = {ends: s for ends, s in self._interval_s.items() if not gone & set(ends)}

    def forget(self, controller: AirController) -> None:
        """A controller fell silent without a word (reset, power cut): its peers' links end by supervision timeout."""
        loop = asyncio.get_running_loop()
        for connection in controller.le_connections.values():
            if peer := self._peer(connection):
                loop.call_later(self._supervision(connection), self._end, peer)

    def _deliver(self, sender: AirController, receiver: AirController, action: Callable[[], None]) -> None:
        if sender in self._absent or receiver in self._absent:
            self._held.append((sender, receiver, action))
        else:
            asyncio.get_running_loop().call_soon(action)

    def _tampered(self, sender: str, frame: bytes) -> list[bytes]:
        if self.tamper is None or len(frame) < 7:
            return [frame]
        _, channel = _L2CAP_HEAD.unpack_from(frame)
        opcode, handle = _NOTIFICATION_HEAD.unpack_from(frame, 4)
        if channel != _ATT_CID or opcode != _ATT_NOTIFICATION:
            return [frame]
        head = _NOTIFICATION_HEAD.pack(opcode, handle)
        return [_L2CAP_HEAD.pack(3 + len(value), channel) + head + value for value in self.tamper(sender, frame[7:])]

    def _peer(self, connection: Connection) -> Connection | None:
        """The other end's view of a link."""
        for controller in self.controllers:
            other = controller.le_connections.get(connection.self_address)
            if other is not None and other.self_address == connection.peer_address:
                return other
        return None

    def _supervision(self, connection: Connection) -> float:
        ends = str(connection.self_address), str(connection.peer_address)
        return self._supervision_s.get(ends) or self._supervision_s.get(ends[::-1]) or DEFAULT_SUPERVISION_S

    def _check_established(self, connection: Connection) -> None:
        if self._peer(connection) is None:
            self._end(connection, hci.HCI_CONNECTION_FAILED_TO_BE_ESTABLISHED_ERROR)

    def _time_out(self, connection: Connection) -> None:
        peer = self._peer(connection)
        ends = {connection.controller} | ({peer.controller} if peer else set())
        self._held = [held for held in self._held if not ends >= {held[0], held[1]}]
        for end in (connection, peer):
            if end is not None:
                self._end(end)

    def _end(self, connection: Connection, reason: int = hci.HCI_CONNECTION_TIMEOUT_ERROR) -> None:
        controller = connection.controller
        if controller.le_connections.get(connection.peer_address) is connection:
            controller.on_le_disconnected(connection, reason)


class AirController(Controller):  # type: ignore[misc]  # bumble is followed without types
    """A virtual Bluetooth controller that can be carried out of range."""

    # With the data length extension, as every controller of Bluetooth 4.2 and later: an HCI packet a notification.
    le_acl_data_packet_length: int = 251

    def __init__(self, name: str, link: AirLink) -> None:
        address = hci.Address(bytes(hci.Address.generate_static_address()), hci.Address.PUBLIC_DEVICE_ADDRESS)
        self._scan_response = b""
        super().__init__(name, link=link, public_address=address)
        self.air = link

    def out_of_range(self) -> None:
        """Stop hearing and being heard; links end with 0x08 after their supervision timeout."""
        self.air.leave(self)

    def in_range(self) -> None:
        """Hear and be heard again."""
        self.air.enter(self)

    def power_off(self) -> None:
        """Leave the air for good, as when the host's process or the battery dies."""
        self._silence()
        self.air.enter(self)
        self.air.remove_controller(self)

    def _silence(self) -> None:
        self.air.forget(self)
        self.le_connections.clear()
        self.pending_le_connection = None
        self.le_scan_enable = False
        self.le_legacy_advertiser.stop()
        for advertising_set in self.advertising_sets.values():
            advertising_set.stop()
        self.advertising_sets.clear()

    def on_hci_reset_command(self, _command: hci.HCI_Reset_Command) -> hci.HCI_StatusReturnParameters:
        """Vol 4, Part E, 7.3.2: forget links, scanning and advertising (bumble keeps them)."""
        self._silence()
        return hci.HCI_StatusReturnParameters(hci.HCI_ErrorCode.SUCCESS)

    def on_hci_le_create_connection_cancel_command(
        self, _command: hci.HCI_LE_Create_Connection_Cancel_Command
    ) -> hci.HCI_StatusReturnParameters:
        """Vol 4, Part E, 7.8.13: the pending connect ends with 'unknown connection identifier' (bumble keeps it)."""
        pending, self.pending_le_connection = self.pending_le_connection, None
        if pending is None:
            return hci.HCI_StatusReturnParameters(hci.HCI_ErrorCode.COMMAND_DISALLOWED_ERROR)
        self.send_hci_packet(
            hci.HCI_LE_Connection_Complete_Event(
                status=hci.HCI_ErrorCode.UNKNOWN_CONNECTION_IDENTIFIER_ERROR,
                connection_handle=0,
                role=hci.Role.CENTRAL,
                peer_address_type=pending.peer_address.address_type,
                peer_address=pending.peer_address,
                connection_interval=0,
                peripheral_latency=0,
                supervision_timeout=0,
                central_clock_accuracy=0,
            )
        )
        return hci.HCI_StatusReturnParameters(hci.HCI_ErrorCode.SUCCESS)

    def on_ll_advertising_pdu(self, packet: Any) -> None:
        """Hear an advertisement or a connect request, unless it comes too late because this controller has left."""
        if self.air.reaches(self):
            self._scan_response = self.air.scan_response_of(packet.advertiser_address)
            super().on_ll_advertising_pdu(packet)

    def send_hci_packet(self, packet: Any) -> None:
        """Give a packet to the host; a scan response holds what the advertiser set as such."""
        if isinstance(packet, hci.HCI_LE_Advertising_Report_Event):
            kind = hci.HCI_LE_Advertising_Report_Event.EventType.SCAN_RSP
            packet = type(packet)([self._answered(report, report.event_type == kind) for report in packet.reports])
        elif isinstance(packet, hci.HCI_LE_Extended_Advertising_Report_Event):
            flag = hci.HCI_LE_Extended_Advertising_Report_Event.EventType.SCAN_RESPONSE
            packet = type(packet)([self._answered(report, bool(report.event_type & flag)) for report in packet.reports])
        super().send_hci_packet(packet)

    def _answered(self, report: Any, is_scan_response: bool) -> Any:
        return replace(report, data=self._scan_response) if is_scan_response else report

    def on_hci_acl_data_packet(self, packet: hci.HCI_AclDataPacket) -> None:
        """Take data from the host; those for a link that has just ended are lost."""
        if self.find_connection_by_handle(packet.connection_handle) is not None:
            super().on_hci_acl_data_packet(packet)

    def on_link_acl_data(self, sender_address: hci.Address, transport: Any, data: bytes) -> None:
        """Accept a frame of a link; a frame that arrives after the link's end is lost, as on real air."""
        if transport != PhysicalTransport.LE or sender_address in self.le_connections:
            super().on_link_acl_data(sender_address, transport, data)

    def on_ll_control_pdu(self, sender_address: hci.Address, packet: Any) -> None:
        """Accept a control packet of a link; a packet that arrives after the link's end is lost."""
        if sender_address in self.le_connections:
            super().on_ll_control_pdu(sender_address, packet)
