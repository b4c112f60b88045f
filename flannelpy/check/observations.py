"""What the gatherers observe, as data.  Pure.

Counterpart: none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.check.lines import Echo
from flannelpy.netfilter.obstacles import Obstacle
from flannelpy.report import DaemonReport, InterfaceReport, LeaseReport, NetworkReport, PeerReport
from flannelpy.rtnetlink.links import Address, Link
from flannelpy.subnet.config import NetworkConfig
from flannelpy.subnet.lease import HostIdentity, Lease


class Peer(NamedTuple):
    """Another host with a subnet; ``mac``: that of its VXLAN device, empty without one and if it is not known."""

    subnet: IPv4Network
    public_ip: IPv4Address
    mac: str = ""


@dataclass(frozen=True, slots=True)
class DaemonSeen:
    """What the running daemon answers.

    ``report`` is None without an answer.  ``peers``: of each network, by its name.
    """

    report: DaemonReport | None = None
    peers: Mapping[str, Sequence[PeerReport]] = field(default_factory=dict)

    def network(self, name: str) -> NetworkReport | None:
        """Return the report about a network; None without an answer."""
        return next((one for one in self.report.networks if one.name == name), None) if self.report else None

    def lease_of(self, name: str) -> LeaseReport | None:
        """Return the lease of a network, if there is one."""
        network = self.network(name)
        return network.lease if network else None

    @property
    def interface(self) -> InterfaceReport | None:
        """The external interface in use, the same one for all networks; None without an answer, and without one."""
        parts = [one.interface for one in self.report.networks] if self.report else []
        return next((part for part in parts if part and part.address and part.public_ip), None)

    def peers_of(self, network: str) -> Sequence[Peer] | None:
        """Return the peers that the daemon uses; None if it does not answer, or does not know them yet."""
        found = self.network(network)
        if found is None or not found.state.is_up:
            return None
        return [Peer(peer.subnet, peer.public_ip) for peer in self.peers.get(network, ())]


class EndpointSeen(NamedTuple):
    """One endpoint of etcd.

    ``failure``: why it gave no answer; ``ahead``: by how many seconds this host's clock is ahead of its clock, None if
    that is not known.  ``is_on_this_host``: its address is a loopback address.
    """

    url: str
    failure: str
    ahead: float | None
    is_on_this_host: bool


class AlarmSeen(NamedTuple):
    """An alarm of a member of etcd, whose ID is in hexadecimal digits."""

    member: str
    name: str


@dataclass(frozen=True, slots=True)
class StoreSeen:
    """What the store has of one network.

    ``key``: of the config.  ``failure``: why there is neither config nor leases, if etcd gave no answer; ``flaw``: why
    the config cannot be used; without both, a config that is None is missing.  ``seconds_left``: of the own lease.
    ``identity``: that of this host; None if the leases are not known.  ``alarms``: of etcd v3, if the leases are there.
    """

    key: str
    config: NetworkConfig | None = None
    failure: str = ""
    flaw: str = ""
    leases: Sequence[Lease] = ()
    seconds_left: int | None = None
    identity: HostIdentity | None = None
    alarms: Sequence[AlarmSeen] = ()


@dataclass(frozen=True, slots=True)
class FileSeen:
    """The subnet file and what stands beside it.

    ``network`` and ``subnet`` are None without a usable file.  ``is_running``: whether a flannelpy holds its lock.
    ``backend``: that of the last run, or empty.
    """

    path: str
    network: IPv4Network | None = None
    subnet: IPv4Network | None = None
    mtu: int = 0
    ip_masq: bool = False
    is_running: bool = False
    backend: str = ""


@dataclass(frozen=True, slots=True)
class HostSeen:
    """The interfaces of this host, and its identity.  ``link``: the external interface, None if it is gone.

    ``differs``: how the choice of the flags differs from that of the running daemon, which then counts; or empty.
    """

    external: ExternalInterface
    identity: HostIdentity
    link: Link | None
    links: Sequence[Link]
    addresses: Sequence[Address]
    differs: str = ""

    @property
    def is_linked(self) -> bool:
        """Return whether packets can leave by the external interface."""
        return self.link is not None and self.link.is_up and self.link.has_carrier

    def holder_of(self, address: IPv4Address) -> Link | None:
        """Return the interface that has an address, if there is one."""
        indices = {one.link_index for one in self.addresses if one.address == address}
        return next((link for link in self.links if link.index in indices), None)


class DeviceSeen(NamedTuple):
    """The tunnel device; ``link`` is None without one.  ``flaws``: how it differs from what it should be."""

    link: Link | None
    flaws: Sequence[str]


class WaySeen(NamedTuple):
    """What the kernel answers about packets of one peer.

    ``no_route``: why no datagram leaves for its public IP.  ``diverted``: routes and rules that take packets for its
    subnet elsewhere.  ``rejecting``: devices on which rp_filter rejects its packets.  ``missing``: entries of the VXLAN
    device that lead to it.
    """

    no_route: str = ""
    diverted: Sequence[str] = ()
    rejecting: Sequence[str] = ()
    missing: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class RulesSeen:
    """What this host does with forwarded packets.

    ``blocked``: devices whose packets the kernel does not forward; ``failures``: why rules could not be listed.
    ``missing``: how the rules of -ip-masq differ from what they should be; None if they are not expected.
    ``conntrack``: how many connections the kernel tracks, and from which number on it drops new ones.
    """

    blocked: Sequence[str] = ()
    is_host_forwarding: bool = True
    obstacles: Sequence[Obstacle] = ()
    failures: Sequence[str] = ()
    missing: Sequence[str] | None = None
    conntrack: tuple[int, int] = (0, 0)


class PortSeen(StrEnum):
    """What a host answers to datagrams for the UDP port of the backend; ``SILENT``: nothing.

    ``NOT_PERMITTED``: none leaves this host.
    """

    CLOSED = "closed"
    PROHIBITED = "prohibited"
    SILENT = "silent"
    NOT_PERMITTED = "not permitted"


@dataclass(frozen=True, slots=True)
class PeerSeen:
    """One peer: its lease, the kernel's answers about it, and its own.

    ``tunnel`` is None without a tunnel.  ``port``: None if it was not asked.  ``is_forwarding``: whether it routes
    packets of the overlay, although it answers no ping there.
    """

    subnet: IPv4Network
    public_ip: IPv4Address
    way: WaySeen
    public: Echo | None = None
    tunnel: Echo | None = None
    bridge: Echo | None = None
    port: PortSeen | None = None
    is_forwarding: bool = False
