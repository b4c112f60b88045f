"""The peers in the maps of the fast path."""

from __future__ import annotations

import time
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from flannelpy.datapath.fast_path import maps
from flannelpy.datapath.routes import Totals
from flannelpy.linux.bpf import BpfMap


class _Peer(NamedTuple):
    public_ip: IPv4Address
    in_kernel: bool


class Peers:
    """Keeps the maps ``routes``, ``senders``, ``subnets`` and ``peers`` in step with the leases."""

    def __init__(self, opened: Mapping[str, BpfMap]) -> None:
        self._routes, self._tallies = opened["routes"], opened["peers"]
        self._senders, self._subnets = opened["senders"], opened["subnets"]
        self._peers: dict[IPv4Network, _Peer] = {}
        self._by_public_ip: dict[IPv4Address, list[IPv4Network]] = {}
        self.removed = Totals()

    def set(self, subnet: IPv4Network, public_ip: IPv4Address, *, in_kernel: bool) -> None:
        """Set a peer, also one that was set otherwise.  Raises HostError."""
        before = self._peers.get(subnet)
        if before == (public_ip, in_kernel):
            return
        key = maps.subnet_key(subnet)
        in_kernel = self._tallies.add_zero(key) and in_kernel
        self._peers[subnet] = _Peer(public_ip, in_kernel)
        self._routes.set(maps.route_key(subnet), maps.route_value(key, public_ip if in_kernel else maps.LOOP))
        if before and before.public_ip != public_ip:
            self._leave(before.public_ip, subnet)
        if before is None or before.public_ip != public_ip:
            self._join(public_ip, subnet)

    def remove(self, subnet: IPv4Network) -> None:
        """Remove a peer, if it was set.  Raises HostError."""
        peer = self._peers.pop(subnet, None)
        if peer is None:
            return
        self._routes.remove(maps.route_key(subnet))
        self._leave(peer.public_ip, subnet)
        self.removed.add(self._carried(subnet))
        self._tallies.remove(maps.subnet_key(subnet))

    def tally(self, subnet: IPv4Network) -> Totals | None:
        """Return what was carried, None if the peer is not set.  Raises HostError."""
        return self._carried(subnet) if subnet in self._peers else None

    def _carried(self, subnet: IPv4Network) -> Totals:
        """Return the counts, with the time in the loop's clock, which does not count suspended time."""
        carried = maps.totals(self._tallies.get(maps.subnet_key(subnet)) or b"")
        if carried.heard_at:
            carried.heard_at -= time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
        return carried

    def _join(self, public_ip: IPv4Address, subnet: IPv4Network) -> None:
        """Take packets from that address; those of the subnet count for it."""
        self._subnets.set(maps.sender_key(public_ip, subnet), maps.subnet_key(subnet))
        self._by_public_ip.setdefault(public_ip, []).append(subnet)
        self._set_sender(public_ip)

    def _leave(self, public_ip: IPv4Address, subnet: IPv4Network) -> None:
        self._subnets.remove(maps.sender_key(public_ip, subnet))
        self._by_public_ip[public_ip].remove(subnet)
        self._set_sender(public_ip)

    def _set_sender(self, public_ip: IPv4Address) -> None:
        if subnets := self._by_public_ip[public_ip]:
            self._senders.set(public_ip.packed, maps.subnet_key(subnets[0]))
        else:
            del self._by_public_ip[public_ip]
            self._senders.remove(public_ip.packed)
