"""What ``flannelpy check`` reports: one line for each thing that it looked at.  Pure.

Counterpart: none; flanneld has only its log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network


class Level(StrEnum):
    """``BAD``: packets are lost, or will be.

    ``WARNING``: packets may be lost, or a part of them is, perhaps on purpose; or the check cannot know.
    """

    OK = "ok"
    WARNING = "warning"
    BAD = "bad"


class Link(StrEnum):
    """A link of the chain from the network config to the containers of a peer, in the order of the lines."""

    INTERFACE = "interface"
    ETCD = "etcd"
    CLOCK = "clock"
    CONFIG = "config"
    LEASE = "lease"
    DAEMON = "daemon"
    DEVICE = "device"
    BRIDGE = "bridge"
    FORWARDING = "forwarding"
    MASQUERADING = "masquerading"
    ROUTES = "routes"
    RP_FILTER = "rp_filter"
    PEERS = "peers"


@dataclass(frozen=True, slots=True)
class Echo:
    """The pings from one address of this host to one address of a peer.

    ``milliseconds``: the median of the round trips, None without an answer.  ``full``: the length in bytes of the IP
    packets that have to pass with DF; ``path_mtu``: of the longest that passes, 0 if loss hides it.
    ``error``: what a router or the kernel reported, or empty.  ``is_rejected``: the target itself rejects pings, so it
    can be reached.  ``is_stopped``: no ping left this host.
    """

    source: IPv4Address
    target: IPv4Address
    sent: int
    received: int
    milliseconds: float | None = None
    full: int = 0
    path_mtu: int = 0
    error: str = ""
    is_rejected: bool = False
    is_stopped: bool = False

    @property
    def has_arrived(self) -> bool:
        """Return whether the target answered at all."""
        return self.received > 0 or self.is_rejected

    @property
    def is_lossy(self) -> bool:
        """Return whether so many answers are lost that silence elsewhere on the path proves nothing."""
        return 0 < self.received <= self.sent / 2

    @property
    def is_narrow(self) -> bool:
        """Return whether small packets pass, and those of the full length certainly do not."""
        return 0 < self.path_mtu < self.full

    def __str__(self) -> str:
        loss = f"{self.target} from {self.source}: {self.sent - self.received} of {self.sent} lost"
        if self.milliseconds is None:
            return f"{loss}{f' ({self.error})' if self.error else ''}"
        return f"{loss}, {self.milliseconds:.2f} ms, path MTU {self.path_mtu or 'unknown'}"


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was looked at.

    ``code``: that of the row in ``verdicts.TABLE``, empty at level ok.  ``network``: the name of the network, empty for
    the only network of a host.  ``peer``: the subnet of the peer that the line is about.
    """

    level: Level
    link: Link
    text: str
    remedy: str = ""
    code: str = ""
    network: str = ""
    peer: IPv4Network | None = None
    echo: Echo | None = None


def ok(link: Link, text: str, peer: IPv4Network | None = None, echo: Echo | None = None) -> Line:
    """Return a line about something that is as it should be."""
    return Line(Level.OK, link, text, peer=peer, echo=echo)


def in_order(lines: Sequence[Line]) -> list[Line]:
    """Return the lines in the order of the chain; those of one link keep their order."""
    order = list(Link)
    return sorted(lines, key=lambda line: order.index(line.link))
