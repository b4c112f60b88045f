"""The TUN device: created by an ioctl, removed by the kernel when it is closed, unless it is persistent.

Source: Documentation/networking/tuntap.rst and include/uapi/linux/if_tun.h of the kernel.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from contextlib import suppress

from flannelpy.errors import HostError
from flannelpy.linux import accept_local

_DEVICE = "/dev/net/tun"
# struct ifreq { char ifr_name[16]; short ifr_flags; ... } is 40 bytes.
_IFREQ = struct.Struct("16sH22x")
_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_TUNSETPERSIST = 0x400454CB
_TUNSETOFFLOAD = 0x400454D0
_TUNGETIFF = 0x800454D2
_TUN_F_CSUM = 0x01
_TUN_F_TSO4 = 0x02
_TUN_F_USO4 = 0x20
_TUN_F_USO6 = 0x40
_NO_MODULE = "; is the tun module there (modprobe tun)?"
#: The most frequent cause of each errno of open().
_CAUSES = {
    errno.EACCES: "; this user has no permission to read and write it: chmod 666 it, or run flannelpy as root",
    errno.EPERM: "; a container or sandbox gives no permission: systemd needs DeviceAllow=/dev/net/tun rw",
    errno.ENOENT: _NO_MODULE,
    errno.ENODEV: _NO_MODULE,
    errno.ENXIO: _NO_MODULE,
}


def check_access() -> None:
    """Check early that a TUN device can be opened.  Raises HostError that names the cause."""
    os.close(_open())


def _open() -> int:
    """Return a new descriptor of the device.  Raises HostError."""
    try:
        return os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"cannot open {_DEVICE}: {error.strerror}{_CAUSES.get(error.errno or 0, '')}") from error


class Tun:
    """An open TUN device.  Reads and writes whole packets and never blocks."""

    def __init__(self, pattern: str = "flannel%d") -> None:
        """Create the first free device of that name, or open the persistent one of exactly this name.

        Raises HostError.
        """
        self.fd = _open()
        try:
            reply = fcntl.ioctl(
                self.fd, _TUNSETIFF, _IFREQ.pack(pattern.encode(), _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR)
            )
        except OSError as error:
            os.close(self.fd)
            raise HostError(f"cannot make a TUN device {pattern}: {error.strerror}; it needs CAP_NET_ADMIN") from error
        self.name: str = _IFREQ.unpack(reply)[0].rstrip(b"\0").decode()

    @classmethod
    def of_descriptor(cls, fd: int) -> Tun:
        """Return the open device that ``fd`` refers to, and own ``fd``.  Raises HostError, and then closes ``fd``."""
        try:
            reply = fcntl.ioctl(fd, _TUNGETIFF, _IFREQ.pack(b"", 0))
            os.set_blocking(fd, False)
        except OSError as error:
            os.close(fd)
            raise HostError(f"descriptor {fd} is no TUN device: {error.strerror}") from error
        tun = cls.__new__(cls)
        tun.fd = fd
        tun.name = _IFREQ.unpack(reply)[0].rstrip(b"\0").decode()
        return tun

    def persist(self, *, on: bool) -> None:
        """Have the kernel keep the device when it is closed, or not.  Raises HostError."""
        try:
            fcntl.ioctl(self.fd, _TUNSETPERSIST, int(on))
        except OSError as error:
            raise HostError(f"cannot make {self.name} persistent: {error.strerror}") from error

    def offload(self, *, tso: bool, uso: bool) -> tuple[bool, bool]:
        """Ask the kernel for super-packets; return whether it will give those of (TCP, UDP)."""
        for use_tso, use_uso in ((tso, uso), (tso, False), (False, False)):
            flags = _TUN_F_CSUM | use_tso * _TUN_F_TSO4 | use_uso * (_TUN_F_USO4 | _TUN_F_USO6)
            try:
                fcntl.ioctl(self.fd, _TUNSETOFFLOAD, flags if use_tso or use_uso else 0)
            except OSError:
                continue
            return use_tso, use_uso
        return False, False

    def accept_own_address(self) -> None:
        """Have the kernel accept packets from the device's own address: our ICMP errors, otherwise martians.

        In a container, /proc/sys may be read-only.  Packets of containers travel all the same, so that is no error; the
        check of accept_local (firewall.py) reports it.  Source: accept_local in
        Documentation/networking/ip-sysctl.rst.
        """
        with suppress(HostError):
            accept_local.enable(self.name)

    def read_into(self, header: memoryview, view: memoryview) -> int:
        """Read the next packet to the start of ``view``; return its length, 0 if there is none.  Raises HostError."""
        try:
            return os.readv(self.fd, (header, view)) - len(header)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise HostError(f"{self.name} cannot be read any more: {error.strerror}") from error

    def write(self, header: bytes, packet: memoryview | bytes) -> bool:
        """Write a packet; return False if the kernel rejects it.  Raises HostError if the device was removed."""
        try:
            os.writev(self.fd, (header, packet))
        except OSError as error:
            if error.errno == errno.EBADFD:
                raise HostError(f"{self.name} is gone: {error.strerror}") from error
            return False
        return True

    def close(self) -> None:
        """Close the device, unless it is closed; the kernel removes it with address and routes if it is not kept."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
