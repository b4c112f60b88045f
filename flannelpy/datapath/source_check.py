"""How strictly the udp backend checks the sender of a datagram.  Pure."""

from __future__ import annotations

import enum


class SourceCheck(enum.StrEnum):
    """Which senders are accepted: a lease's public IP, that only for its own subnet, or any sender."""

    PEER = "peer"
    STRICT = "strict"
    OFF = "off"
