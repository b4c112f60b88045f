"""The Backend object of a udp config.  Pure.

Counterpart: the config of NewUdpBackend in backend/udp/udp.go, which has the port alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from flannelpy.datapath.settings import inner_mtu, number

# 20 bytes of outer IPv4 header, 8 of UDP.
ENCAP_OVERHEAD = 28

#: The port without a config.
DEFAULT_PORT = 8285


class Settings(NamedTuple):
    """The settings of a udp backend: the UDP port of all hosts, and the MTU of the device, which containers may use."""

    port: int
    mtu: int


def parse(options: Mapping[str, object], external_mtu: int) -> Settings:
    """Return the settings for an external interface with that MTU.  Raises ConfigError naming key, value and rule."""
    port = number(options, "Port", 1, 65535, default=DEFAULT_PORT)
    return Settings(port, inner_mtu(options, ENCAP_OVERHEAD, external_mtu))
