"""How packets travel: what every backend can do, and which backends there are.

Counterpart: backend/common.go, backend/manager.go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from typing import Protocol

from flannelpy.errors import ConfigError
from flannelpy.linux.interface import ExternalInterface
from flannelpy.linux.netlink import Netlink
from flannelpy.options import Options
from flannelpy.subnet.config import NetworkConfig
from flannelpy.subnet.lease import Lease, LeaseAttrs
from flannelpy.subnet.lease_table import LeaseEvent


class Backend(Protocol):
    """One way for packets between hosts, for the life of one lease."""

    def lease_attrs(self, public_ip: IPv4Address) -> LeaseAttrs:
        """What other hosts need to know of us."""

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
        """Remove what ``start`` set up."""


def create(config: NetworkConfig, external: ExternalInterface, options: Options) -> Backend:
    """The backend that the config asks for.  Raises ConfigError."""
    factory = _BACKENDS.get(config.backend.type)
    if factory is None:
        known = ", ".join(sorted(_BACKENDS))
        raise ConfigError(f"unknown backend type: {config.backend.type!r}; Backend.Type may be {known}")
    return factory(config, external, options)


def _udp(config: NetworkConfig, external: ExternalInterface, options: Options) -> Backend:
    from flannelpy.backend.udp.backend import UdpBackend

    return UdpBackend(config, external, options.offload, options.source_check)


def _alloc(config: NetworkConfig, external: ExternalInterface, options: Options) -> Backend:
    from flannelpy.backend.alloc import AllocBackend

    return AllocBackend(external)


def _host_gw(config: NetworkConfig, external: ExternalInterface, options: Options) -> Backend:
    from flannelpy.backend.host_gw import HostGwBackend

    return HostGwBackend(config, external, options.public_ip)


# Each is imported when it is chosen.
_BACKENDS: dict[str, Callable[[NetworkConfig, ExternalInterface, Options], Backend]] = {
    "alloc": _alloc,
    "host-gw": _host_gw,
    "udp": _udp,
}
