"""Counts what was sent to one peer and accepted from it.

The counts are of IP packets as they are on the wire: of the segments of a super-packet, not of the super-packet.
"""


class Tally:
    """The packets and bytes of one peer, and when the last of its packets was accepted, in seconds; 0 for none."""

    def __init__(self) -> None:
        self.packets_out = 0
        self.bytes_out = 0
        self.packets_in = 0
        self.bytes_in = 0
        self.heard_at = 0.0

    def sent(self, length: int, segment_size: int) -> None:
        """Count datagrams of ``segment_size`` bytes, ``length`` in all; the last may be shorter."""
        self.packets_out += count(length, segment_size)
        self.bytes_out += length

    def accepted(self, packets: int, length: int, now: float) -> None:
        """Count packets, ``length`` bytes in all, that were accepted at time ``now``."""
        self.packets_in += packets
        self.bytes_in += length
        self.heard_at = now


def count(length: int, segment_size: int) -> int:
    """Return the number of datagrams in a train; an empty datagram counts."""
    if length <= segment_size:
        return 1
    return (length + segment_size - 1) // segment_size
