"""What stops packets between the containers of one network and its peers on this host.

Counterpart: none; flanneld does not check that packets of containers are forwarded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Network

from flannelpy.datapath.traffic import Forwarding
from flannelpy.host.firewall import Firewall
from flannelpy.host.forward_check import SysctlCheck
from flannelpy.linux.netlink.client import Netlink
from flannelpy.netfilter.obstacles import Traffic
from flannelpy.netfilter.peer_addresses import PeerAddresses
from flannelpy.report import TrafficReport
from flannelpy.rtnetlink.links import Address
from flannelpy.subnet.lease_table import LeaseEvent


class ContainerTraffic:
    """The bridges of one network's containers, and the checks of settings and rules for their packets."""

    def __init__(self, firewall: Firewall, name: str, network: IPv4Network, on_change: Callable[[], None]) -> None:
        """``on_change`` is called when the firewall's obstacle may have changed."""
        self._firewall = firewall
        self._name = name
        self._network = network
        self._on_change = on_change
        self._bridges: Sequence[str] = ()
        self._sysctls = SysctlCheck()
        self._peers = PeerAddresses()

    def apply(self, events: Sequence[LeaseEvent]) -> None:
        """Follow the leases of the peers, whose public IPs masqueraded packets have."""
        self._peers.apply(events)

    async def check(self, netlink: Netlink, subnet: IPv4Network, forwarding: Forwarding | None) -> None:
        """Look for the bridges again, and check the packets that this host forwards for them.  Raises HostError.

        ``forwarding``: None if the backend has this host forward no packets.
        """
        indices = bridges(subnet, await netlink.addresses())
        self._bridges = tuple(map(netlink.name_of, sorted(indices)))
        devices = [*forwarding.devices, *self._bridges] if forwarding and self._bridges else []
        await self._sysctls.check(devices)
        self._firewall.watch(self._name, self._traffic(subnet, forwarding), self._on_change)

    def report(self) -> TrafficReport:
        """Return what stops the packets: nothing before there is a network of containers.

        Until then Docker may remove the obstacle when it starts, and Docker waits for flannelpy.
        """
        if not self._bridges:
            return TrafficReport()
        return TrafficReport(self._sysctls.report().problem or self._firewall.report(self._name).obstacle)

    def _traffic(self, subnet: IPv4Network, forwarding: Forwarding | None) -> Traffic | None:
        if not forwarding:
            return None
        devices = tuple(device for device in forwarding.devices if device not in forwarding.unused)
        masquerading = forwarding.masquerading
        peers = self._peers.addresses() if masquerading else None
        return Traffic(self._network, subnet, devices, masquerading, tuple(self._bridges), peers)


def bridges(subnet: IPv4Network, addresses: Iterable[Address]) -> set[int]:
    """Return the link indices of devices with an address of the subnet, except its first, which is the tunnel's."""
    return {one.link_index for one in addresses if one.address in subnet and one.address != subnet.network_address}
