"""How packets of one network should travel on this host, by the config or by the traces of the last run.  Pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.check.observations import FileSeen
from flannelpy.datapath import udp_settings, vxlan_settings
from flannelpy.datapath.settings import inner_mtu
from flannelpy.errors import ConfigError
from flannelpy.foreign import shown
from flannelpy.subnet.config import NetworkConfig

_OVERHEADS = {"udp": udp_settings.ENCAP_OVERHEAD, "vxlan": vxlan_settings.ENCAP_OVERHEAD, "host-gw": 0, "alloc": 0}


class Plan(NamedTuple):
    """The way of packets.

    ``mtu``: of containers; ``port``: of the datagrams, 0 without any, and if it is not known.  ``vxlan``: the settings
    of the vxlan backend, if they are known.
    """

    backend: str
    network: IPv4Network
    subnet: IPv4Network
    mtu: int
    port: int = 0
    vxlan: vxlan_settings.Settings | None = None

    @property
    def overhead(self) -> int:
        """Bytes of headers that the backend adds to each packet."""
        return _OVERHEADS[self.backend]

    @property
    def has_tunnel(self) -> bool:
        """Whether hosts have a tunnel device, with the first address of their subnet."""
        return self.backend in ("udp", "vxlan")

    @property
    def routes_packets(self) -> bool:
        """Whether the backend carries packets at all."""
        return self.backend != "alloc"

    @property
    def is_direct(self) -> bool:
        """Whether peers on the link get a route by their public IP although there is a tunnel."""
        return self.vxlan is not None and self.vxlan.direct_routing

    @property
    def bridge(self) -> str:
        """The address that the bridge of this host's containers needs, with its prefix length."""
        return f"{bridge_address(self.subnet)}/{self.subnet.prefixlen}"


def tunnel_address(subnet: IPv4Network) -> IPv4Address:
    """Return the address of the tunnel device of the host that leases a subnet."""
    return subnet.network_address


def bridge_address(subnet: IPv4Network) -> IPv4Address:
    """Return the address of the bridge, by the subnet file of the host that leases a subnet."""
    return subnet.network_address + 1


def by_config(config: NetworkConfig, external: ExternalInterface, subnet: IPv4Network) -> Plan:
    """Return the way that the config asks for.  Raises ConfigError."""
    options = config.backend.options
    match config.backend.type:
        case "udp":
            port, mtu = udp_settings.parse(options, external.mtu)
            return Plan("udp", config.network, subnet, mtu, port)
        case "vxlan":
            settings = vxlan_settings.parse(options, external.mtu)
            return Plan("vxlan", config.network, subnet, settings.mtu, settings.port, settings)
        case "host-gw" | "alloc" as backend:
            return Plan(backend, config.network, subnet, external.mtu)
        case unknown:
            raise ConfigError(
                f"unknown backend type: {shown(repr(unknown))}; Backend.Type may be {', '.join(sorted(_OVERHEADS))}"
            )


def by_traces(file: FileSeen, external: ExternalInterface) -> Plan | None:
    """Return the way of the last run, by its subnet file and its record; None if they do not tell."""
    if not file.network or not file.subnet or file.backend not in _OVERHEADS:
        return None
    mtu = file.mtu or inner_mtu({}, _OVERHEADS[file.backend], external.mtu)
    return Plan(file.backend, file.network, file.subnet, mtu)
