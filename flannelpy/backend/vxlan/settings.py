"""The Backend object of a vxlan config.  Pure.

Counterpart: RegisterNetwork in backend/vxlan/vxlan.go; Learning, MTU and DirectRouting are those of later versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from flannelpy.errors import ConfigError
from flannelpy.subnet import go_json

# Outer IPv4, UDP and VXLAN header, and the inner Ethernet header.  Source: RFC 7348.
ENCAP_OVERHEAD = 50

_DEFAULT_VNI = 1
# The device is named flannel.<VNI>, and no name is longer than 15 characters.
_MAX_VNI = 9_999_999
# The kernel's default, from before there was an assigned one.
_DEFAULT_PORT = 8472
# What every IPv4 host has to take.  Source: RFC 791.
_MIN_MTU = 68


class Settings(NamedTuple):
    """``mtu`` is that of the device, which containers may use."""

    vni: int
    port: int
    mtu: int
    learning: bool
    gbp: bool
    direct_routing: bool

    @property
    def device_name(self) -> str:
        """As the original names it."""
        return f"flannel.{self.vni}"


def parse(options: Mapping[str, object], external_mtu: int) -> Settings:
    """What the object asks for, on an interface of that MTU.  Raises ConfigError naming key, value and rule.

    Its MTU is that of the packets on the wire, by default the interface's.
    """
    wire_mtu = _number(options, "MTU", ENCAP_OVERHEAD + _MIN_MTU, external_mtu, default=external_mtu)
    return Settings(
        _number(options, "VNI", 0, _MAX_VNI, default=_DEFAULT_VNI),
        _number(options, "Port", 0, 65535, default=0) or _DEFAULT_PORT,
        wire_mtu - ENCAP_OVERHEAD,
        _flag(options, "Learning"),
        _flag(options, "GBP"),
        _flag(options, "DirectRouting"),
    )


def _number(options: Mapping[str, object], key: str, lowest: int, highest: int, *, default: int) -> int:
    value = go_json.get(options, key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise ConfigError(f"Backend.{key} {go_json.show(value)} is not a number from {lowest} to {highest}")
    return value


def _flag(options: Mapping[str, object], key: str) -> bool:
    value = go_json.get(options, key)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise ConfigError(f"Backend.{key} {go_json.show(value)} is not true or false")
    return value
