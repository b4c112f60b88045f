"""How packets travel: what every backend can do, and which backends there are.

Counterpart: backend/common.go, backend/manager.go.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Iterator, Sequence
from importlib import import_module
from ipaddress import IPv4Network
from typing import NamedTuple, Protocol, cast

from flannelpy.errors import ConfigError
from flannelpy.linux.interface import ExternalInterface
from flannelpy.linux.netlink import Netlink
from flannelpy.options import Options
from flannelpy.subnet.config import NetworkConfig
from flannelpy.subnet.lease import Lease, LeaseAttrs
from flannelpy.subnet.lease_table import Added, Gone, LeaseEvent
from flannelpy.subnet.renewal import Holder

log = logging.getLogger(__name__)


class Datagrams(NamedTuple):
    """The UDP datagrams of a backend: all hosts listen on ``port``; ``device`` is where packets enter the overlay.

    ``source_port``: 0 if the kernel chooses one for each flow.  ``accepts_local``: the device needs accept_local.
    """

    device: str
    port: int
    source_port: int
    accepts_local: bool


class Backend(Protocol):
    """One way for packets between hosts, for the life of one lease.

    ``needs``: what it has to have for itself alone, in words, so that no two networks of a host take the same.
    """

    @property
    def needs(self) -> Sequence[str]: ...  # noqa: D102

    @property
    def datagrams(self) -> Datagrams | None:
        """What carries packets since ``start``, if datagrams do."""

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
    """Of all backends, as the host may have run any of them.  Raises HostError."""
    # udp first, which knows whether its devices are in use.
    return await _remove(netlink, sorted(_ROOMS, key=lambda name: name != "udp"), network)


async def make_way(
    netlink: Netlink, backend_type: str, network: IPv4Network, previous: IPv4Network | None
) -> list[str]:
    """Remove what would lead packets astray: what other backends, or runs on a ``previous`` network, have left.

    What that was.  Raises HostError.  A backend adopts what it has left itself, and vxlan routes of host-gw, too.
    """
    adopted = {backend_type, "host-gw"} if backend_type == "vxlan" else {backend_type}
    left = await _remove(netlink, [room for room in _THAT_LEAVE if room not in adopted], network)
    return left if previous in (None, network) else [*left, *await _remove(netlink, _THAT_LEAVE, previous)]


async def abandon(netlink: Netlink, network: IPv4Network, previous: IPv4Network | None) -> None:
    """Our subnet is another host's now: nothing leads to others any more, whatever put it there.  Raises HostError."""
    for each in {network, previous}:
        await _remove(netlink, _THAT_LEAVE, each)


async def _remove(netlink: Netlink, rooms: Iterable[str], network: IPv4Network | None) -> list[str]:
    return [left for room in rooms for left in await _room(room).remove_leftovers(netlink, network)]


def _room(backend_type: str) -> BackendRoom:
    return cast(BackendRoom, import_module(_ROOMS[backend_type]))


def reachable(
    backend_type: str, network: IPv4Network, events: Sequence[LeaseEvent], known: Container[IPv4Network]
) -> Iterator[Added | Gone]:
    """The events that concern a backend on ``network``; ``known`` are the subnets that it was told of.

    A lease of another backend is as good as none, since its host cannot be reached our way; so is one that is no part
    of the network, such as one from before the config changed: what leads there is not ours.
    """
    for event in events:
        why = _why_ignored(backend_type, network, event.lease) if isinstance(event, Added) else ""
        if why:
            assert isinstance(event, Added)
            log.warning("Ignoring subnet %s: %s", event.lease.subnet, why)
            event = Gone(event.lease.subnet)
        if isinstance(event, Added) or event.subnet in known:
            yield event


def _why_ignored(backend_type: str, network: IPv4Network, lease: Lease) -> str:
    """Why a lease leads nowhere, if it does not."""
    if lease.attrs.backend_type != backend_type:
        return f"its backend is {lease.attrs.backend_type or 'udp'}, ours {backend_type or 'udp'}"
    if lease.subnet == network or not lease.subnet.subnet_of(network):
        return f"it is no part of the network {network}"
    return ""
