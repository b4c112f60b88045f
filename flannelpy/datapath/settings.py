"""Values of the Backend object that several backends read alike.  Pure.

Counterpart: none; the original has Go read numbers and flags, and checks none of them.
"""

from __future__ import annotations

from collections.abc import Mapping

from flannelpy.errors import ConfigError
from flannelpy.subnet import go_json

# What every IPv4 host has to take.  Source: RFC 791.
_MIN_MTU = 68


def number(options: Mapping[str, object], key: str, lowest: int, highest: int, *, default: int) -> int:
    """An integer.  Raises ConfigError naming key, value and rule."""
    value = go_json.get(options, key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise ConfigError(f"Backend.{key} {go_json.show(value)} is not a number from {lowest} to {highest}")
    return value


def flag(options: Mapping[str, object], key: str) -> bool:
    """True or false, which is the default.  Raises ConfigError naming key, value and rule."""
    value = go_json.get(options, key)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise ConfigError(f"Backend.{key} {go_json.show(value)} is not true or false")
    return value


def inner_mtu(options: Mapping[str, object], overhead: int, external_mtu: int) -> int:
    """The MTU of what is put into datagrams with ``overhead`` bytes of headers.  Raises ConfigError.

    Backend.MTU is that of the packets on the wire: at most ``external_mtu``, the external interface's, which is the
    default.
    """
    return number(options, "MTU", overhead + _MIN_MTU, external_mtu, default=external_mtu) - overhead
