"""The Backend object of a vxlan config.  Pure.

Counterpart: RegisterNetwork in backend/vxlan/vxlan.go; Learning, MTU and DirectRouting are options of later versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from flannelpy.datapath.settings import flag, inner_mtu, number
from flannelpy.errors import ConfigError

# Outer IPv4, UDP and VXLAN header, and the inner Ethernet header.  Source: RFC 7348.
ENCAP_OVERHEAD = 50

_DEFAULT_VNI = 1
# The device is named flannel.<VNI>, and no name is longer than 15 characters.
_MAX_VNI = 9_999_999
# The kernel's default, which is older than the port assigned by IANA.
_DEFAULT_PORT = 8472


class Settings(NamedTuple):
    """The settings of a vxlan backend.  ``mtu`` is that of the device, which containers may use.

    ``port`` is the UDP port of the device.  ``other_port`` is the port of hosts that read the config in the other byte
    order; 0 if all hosts use the same port.
    """

    vni: int
    port: int
    mtu: int
    learning: bool
    gbp: bool
    direct_routing: bool
    other_port: int = 0

    @property
    def device_name(self) -> str:
        """Return the name that the original gives the device."""
        return f"flannel.{self.vni}"


def parse(options: Mapping[str, object], external_mtu: int) -> Settings:
    """Return the settings for an external interface with that MTU.  Raises ConfigError naming key, value and rule."""
    mtu = inner_mtu(options, ENCAP_OVERHEAD, external_mtu)
    vni = number(options, "VNI", 0, _MAX_VNI, default=_DEFAULT_VNI)
    port, other_port = _ports(options)
    return Settings(
        vni, port, mtu, flag(options, "Learning"), flag(options, "GBP"), flag(options, "DirectRouting"), other_port
    )


def _ports(options: Mapping[str, object]) -> tuple[int, int]:
    """Return our port, and that of hosts that read the config in the other byte order.

    flanneld up to v0.5.5 writes an explicit Port into its netlink message with the two bytes swapped.  Without Port, or
    with 0, every version uses the kernel's default.
    """
    port = number(options, "Port", 0, 65535, default=0)
    is_swapped = flag(options, "PortSwapped")
    if not port and is_swapped:
        raise ConfigError(
            f"Backend.PortSwapped true needs Backend.Port: without it, every flanneld uses port {_DEFAULT_PORT}; leave "
            "PortSwapped out, or name the Port that the hosts of flanneld up to v0.5.5 have in their config"
        )
    swapped = _swap_bytes(port)
    if swapped == port:
        return port or _DEFAULT_PORT, 0
    return (swapped, port) if is_swapped else (port, swapped)


def _swap_bytes(port: int) -> int:
    """Return a port with its two bytes in the other order: 53790 for 7890."""
    return (port & 0xFF) << 8 | port >> 8
