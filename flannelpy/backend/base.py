"""How packets travel: what every backend can do, and which backends there are.

Counterpart: backend/common.go, backend/manager.go.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterator, Sequence
from importlib import import_module
from ipaddress import IPv4Network
from typing import Protocol, cast

from flannelpy.errors import ConfigError
from flannelpy.linux.interface import ExternalInterface
from flannelpy.linux.netlink import Netlink
from flannelpy.options import Options
from flannelpy.subnet.config import NetworkConfig
from flannelpy.subnet.lease import Lease, LeaseAttrs
from flannelpy.subnet.lease_table import Added, Gone, LeaseEvent
from flannelpy.subnet.renewal import Holder

log = logging.getLogger(__name__)


class Backend(Protocol):
    """One way for packets between hosts, for the life of one lease.

    ``claims``: what it needs for itself alone, in words, so that no two networks of a host want the same.
    """

    @property
    def claims(self) -> Sequence[str]: ...  # noqa: D102

    def lease_attrs(self, holder: Holder, found: LeaseAttrs | None) -> LeaseAttrs:
        """What other hosts need to know of us; ``found`` is what they know already."""

    async def start(self, lease: Lease) -> int:
        """Carry packets for ``lease`` from now on; the MTU that containers may use.  Raises HostError."""

    def apply(self, events: Sequence[LeaseEvent]) -> None:
        """Follow the other hosts' leases; the first call brings all there are, if any."""

    def describe(self) -> str:
        """The state in a few words, for a status line."""

    async def run(self) -> None:
        """Stay with it until cancelled."""

    async def repair(self, netlink: Netlink) -> list[str]:
        """Put right what somebody has changed of what ``start`` set up; what that was.  Raises HostError."""

    async def abandon(self) -> None:
        """Our subnet is another host's now: also what ``close`` would leave goes.  Raises HostError."""

    def close(self) -> None:
        """Remove what ``start`` set up, but for what lets traffic go on while we restart."""


class BackendRoom(Protocol):
    """The module of a backend."""

    def create(self, config: NetworkConfig, external: ExternalInterface, options: Options) -> Backend:
        """One for this config.  Raises ConfigError, HostError."""

    async def remove_leftovers(self, netlink: Netlink, network: IPv4Network | None) -> list[str]:
        """Remove what earlier runs have left, on ``network`` if it is known; what that was.  Raises HostError.

        That also says no when what is there is in use.
        """


# Each is imported when it is needed.
_ROOMS = {
    "alloc": "flannelpy.backend.alloc",
    "host-gw": "flannelpy.backend.host_gw",
    "udp": "flannelpy.backend.udp.backend",
    "vxlan": "flannelpy.backend.vxlan.backend",
}

# Those of which something stays when they stop.
_THAT_LEAVE = ("host-gw", "vxlan")


def create(config: NetworkConfig, external: ExternalInterface, options: Options) -> Backend:
    """The backend that the config asks for.  Raises ConfigError, HostError."""
    backend_type = config.backend.type
    if backend_type not in _ROOMS:
        known = ", ".join(sorted(_ROOMS))
        raise ConfigError(f"unknown backend type: {backend_type!r}; Backend.Type may be {known}")
    return _room(backend_type).create(config, external, options)


async def remove_leftovers(netlink: Netlink, network: IPv4Network | None) -> list[str]:
    """Of all backends, as the host may have run any of them.  Raises HostError, before anything was removed."""
    return [
        left
        for backend_type in sorted(_ROOMS, key=lambda name: name != "udp")  # it knows whether its devices are in use
        for left in await _room(backend_type).remove_leftovers(netlink, network)
    ]


async def make_way(
    netlink: Netlink, backend_type: str, network: IPv4Network, previous: IPv4Network | None
) -> list[str]:
    """Remove what would lead packets astray: what other backends, or runs on a ``previous`` network, have left.

    What that was.  Raises HostError.  A backend adopts what it has left itself, and vxlan routes of host-gw, too.
    """
    networks = {each for each in (network, previous) if each}
    return [
        left
        for room in _THAT_LEAVE
        for each in networks
        if each != network or backend_type not in (room, "vxlan")
        for left in await _room(room).remove_leftovers(netlink, each)
    ]


def _room(backend_type: str) -> BackendRoom:
    return cast(BackendRoom, import_module(_ROOMS[backend_type]))


def of_type(backend_type: str, events: Sequence[LeaseEvent], known: Container[IPv4Network]) -> Iterator[Added | Gone]:
    """The events that concern a backend; ``known`` are the subnets that it was told of.

    A lease of another type is as good as none: its host cannot be reached our way.
    """
    for event in events:
        if isinstance(event, Added) and event.lease.attrs.backend_type != backend_type:
            theirs = event.lease.attrs.backend_type
            log.warning(
                "Ignoring subnet %s: its backend is %s, ours %s",
                event.lease.subnet,
                theirs or "udp",
                backend_type or "udp",
            )
            event = Gone(event.lease.subnet)
        if isinstance(event, Added) or event.subnet in known:
            yield event
