"""The features of an interface, as ``ethtool -k`` shows them.

Source: ethtool(8), include/uapi/linux/ethtool.h of the kernel.
"""

from __future__ import annotations

import ctypes
import enum
import fcntl
import socket
import struct

from flannelpy.errors import HostError

_SIOCETHTOOL = 0x8946
# struct ifreq { char ifr_name[16]; void *ifr_data; … } is 40 bytes.
_IFREQ = struct.Struct("16sP16x")
# struct ethtool_value { __u32 cmd, data; }
_VALUE = struct.Struct("=II")


class Feature(enum.Enum):
    """A feature, by the commands that read and set it."""

    TSO = 0x1E, 0x1F  # cuts TCP super-packets
    GRO = 0x2B, 0x2C  # merges received packets


def has_feature(name: str, feature: Feature) -> bool:
    """Return whether the feature of the interface is on.  Raises HostError."""
    return bool(_ask(name, feature.value[0], 0))


def set_feature(name: str, feature: Feature, is_on: bool) -> None:
    """Switch the feature of the interface.  Raises HostError."""
    _ask(name, feature.value[1], int(is_on))


def _ask(name: str, command: int, data: int) -> int:
    value = ctypes.create_string_buffer(_VALUE.pack(command, data), _VALUE.size)
    request = _IFREQ.pack(name.encode(errors="surrogateescape"), ctypes.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        try:
            fcntl.ioctl(end, _SIOCETHTOOL, request)
        except OSError as error:
            raise HostError(f"cannot read or set the features of {name}: {error.strerror}") from error
    return int(_VALUE.unpack(value.raw)[1])
