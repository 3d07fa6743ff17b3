"""Read a wearable that armlet does not know: decode its notifications, and align its samples.

Usage: ``python custom_wearable.py``. A made glove notifies a packet counter and three 16-bit integers in 1/1000 g, 100
times a second. Prints what one packet says. ``wearables/guide.md`` shows the rest: the file of a profile,
which connects and starts a real glove, and its virtual twin.
"""

import struct

import numpy as np

from armlet_runtime.errors import PacketError
from armlet_runtime.modalities import Modality
from armlet_runtime.wearables import UNITS, XYZ, Batch, Counters, Decoder, Group

ACCELERATION = Modality("acc", XYZ, UNITS["acc"], 100.0)
GLOVE = Group("glove", (ACCELERATION,), Counters(sequence_wrap=1 << 16))
PACKET = struct.Struct("<H3h")  # counter, x, y, z


class GloveDecoder:
    """Turns the bytes of a notification into samples; keeps no clock, which armlet makes from the counter."""

    groups: tuple[Group, ...] = (GLOVE,)

    def take(self, kind: str, source: str, data: bytes) -> list[Batch]:
        """Samples of one notification."""
        if len(data) != PACKET.size:
            raise PacketError(f"a glove's packet has {PACKET.size} bytes, not {len(data)}")
        counter, *axes = PACKET.unpack(data)
        return [Batch(GLOVE, {"acc": np.array([axes], np.float32) / np.float32(1000)}, counter)]


def main() -> None:
    """Decode one good packet and one that is too short."""
    decoder: Decoder = GloveDecoder()
    (batch,) = decoder.take("data", "", PACKET.pack(7, 12, -500, 981))
    print(f"packet {batch.sequence}: acc {batch.values['acc'][0].tolist()} {ACCELERATION.unit}")
    try:
        decoder.take("data", "", b"short")
    except PacketError as error:
        print(f"counted as a bad packet: {error}")


if __name__ == "__main__":
    main()
