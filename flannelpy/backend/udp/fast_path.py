"""The eBPF fast path of the udp backend: loads the programs, keeps their maps and filters, reads their counters.

Two programs carry what the loop would carry, to the byte, and leave everything unusual to it: ``outgoing`` at the
egress of the TUN, ``incoming`` at the ingress of the external interface.  Their checks are in
``datapath/fast_path/checks.py``.  The filters stay when this process ends, until the deadline is over.

The order at the start: ``open``; ``set`` for the peers and ``extend``; ``attach``.  Until ``attach``, programs that an
earlier process left carry on; ``attach`` swaps each in one step.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from flannelpy.datapath.source_check import SourceCheck
from flannelpy.linux.netlink.client import Netlink
from flannelpy.packet.tally import Tally


class FastPathConfig(NamedTuple):
    """What does not change while a network runs.

    ``subnet``: our own; ``network``: that of all subnets; ``bound``, ``port``: address and port of our socket;
    ``device``, ``external``: names of the TUN and of the external interface; ``alias``: that of the TUN, which marks
    the filters and the GRO pair as ours.
    """

    subnet: IPv4Network
    network: IPv4Network
    bound: IPv4Address
    port: int
    source_check: SourceCheck
    device: str
    external: str
    alias: str


class FastPath:
    """The programs, maps and filters of one network."""

    def __init__(self, config: FastPathConfig) -> None:
        self._config = config

    async def open(self, netlink: Netlink) -> None:
        """Load the programs, test them with golden packets, set up the GRO pair; the TUN must exist.

        The packets of the overlay stay with the loop, or with the programs of an earlier process, until ``attach``.
        Raises HostError with the reason for which this host has no fast path; then nothing is left behind.
        """
        raise NotImplementedError

    async def attach(self, netlink: Netlink) -> None:
        """Attach the incoming program, then the outgoing one, in place of those of an earlier process.

        Also attaches the outgoing program again after ``close_outgoing``.  Raises HostError.
        """
        raise NotImplementedError

    def set(self, subnet: IPv4Network, public_ip: IPv4Address, *, in_kernel: bool) -> None:
        """Carry packets to and from the peer that leases ``subnet``, or leave them to the loop.

        ``in_kernel``: whether its lease says that it decapsulates in the kernel.  Give all peers: a peer of the loop
        may lease a part of another peer's subnet.  Takes some microseconds.  A peer for which the maps have no space
        stays with the loop.
        """
        raise NotImplementedError

    def remove(self, subnet: IPv4Network) -> None:
        """Forget the peer that leases ``subnet``, if it was set; its tally goes to ``removed_tally``."""
        raise NotImplementedError

    def extend(self, deadline: float) -> None:
        """Let the programs carry packets until ``deadline``, in seconds since boot (CLOCK_BOOTTIME).

        Before the first call they carry nothing.  ``float("inf")``: without an end, for a reservation.
        """
        raise NotImplementedError

    def tally(self, subnet: IPv4Network) -> Tally | None:
        """Return what the programs carried to and from that peer, or None if it is not set.

        ``heard_at`` is a time of CLOCK_MONOTONIC, as that of the loop's tallies.  Takes some microseconds.
        """
        raise NotImplementedError

    @property
    def removed_tally(self) -> Tally:
        """Return what the programs carried for peers that were removed."""
        raise NotImplementedError

    def counts(self) -> Mapping[str, int]:
        """Return how many packets each check left to the loop, by the name of the check; those without any not."""
        raise NotImplementedError

    async def close_outgoing(self, netlink: Netlink) -> None:
        """Detach the outgoing program: the loop sends from now on.  Raises HostError."""
        raise NotImplementedError

    async def close(self, netlink: Netlink) -> None:
        """Detach both programs, and remove the GRO pair and all else that was added.  Raises HostError."""
        raise NotImplementedError

    def release(self) -> None:
        """Leave the programs at work without this process, until the deadline; the object is not used after that."""
        raise NotImplementedError

    async def flaws(self, netlink: Netlink) -> list[str]:
        """Return what other programs changed, as phrases of the log: ``eth1 lost the incoming program``.

        Raises HostError.
        """
        raise NotImplementedError

    async def repair(self, netlink: Netlink) -> None:
        """Restore what ``flaws`` names, also for a TUN or external interface that was recreated.  Raises HostError."""
        raise NotImplementedError


async def remove_left(netlink: Netlink, alias: str) -> list[str]:
    """Remove the filters and the GRO pair that a dead process with this ``alias`` left; return their names for the log.

    Raises HostError.
    """
    raise NotImplementedError
