"""Readers for values of the Backend object that several backends share.  Pure.

Counterpart: none; the original leaves numbers and flags to Go's JSON decoder, and checks none of them.
"""

from __future__ import annotations

from collections.abc import Mapping

from flannelpy.errors import ConfigError
from flannelpy.subnet import go_json

# The MTU that every IPv4 host must support.  Source: RFC 791.
_MIN_MTU = 68


def number(options: Mapping[str, object], key: str, lowest: int, highest: int, *, default: int) -> int:
    """Return an integer option.  Raises ConfigError naming key, value and rule."""
    value = go_json.get(options, key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise ConfigError(f"Backend.{key} {go_json.show(value)} is not a number from {lowest} to {highest}")
    return value


def flag(options: Mapping[str, object], key: str) -> bool:
    """Return a boolean option, by default false.  Raises ConfigError naming key, value and rule."""
    value = go_json.get(options, key)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise ConfigError(f"Backend.{key} {go_json.show(value)} is not true or false")
    return value


def inner_mtu(options: Mapping[str, object], overhead: int, external_mtu: int) -> int:
    """Return the MTU of packets that are encapsulated with ``overhead`` bytes of headers.  Raises ConfigError.

    Backend.MTU is that of the packets on the wire: at most ``external_mtu``, the external interface's, which is the
    default.
    """
    return number(options, "MTU", overhead + _MIN_MTU, external_mtu, default=external_mtu) - overhead
