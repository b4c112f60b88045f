"""How strictly the udp backend checks the sender of a datagram.  Pure."""

from __future__ import annotations

import enum


class SourceCheck(enum.StrEnum):
    """Whose datagrams are accepted: a lease's public IP, only for its own subnet, or anybody's."""

    PEER = "peer"
    STRICT = "strict"
    OFF = "off"
