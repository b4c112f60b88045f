"""The UDP socket that carries the overlay's datagrams, many at a time where the kernel can.

Source: udp(7), ip(7), include/uapi/linux/udp.h.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import socket
import struct
from collections.abc import Collection
from contextlib import suppress
from ipaddress import IPv4Address

from flannelpy.errors import HostError
from flannelpy.linux import sender_filter
from flannelpy.packet.drops import DropReason

log = logging.getLogger(__name__)

# Numbers that the socket module has no names for.
_SO_ATTACH_FILTER = 26
_SO_DETACH_FILTER = 27
_UDP_SEGMENT = 103
_UDP_GRO = 104
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_SO_MEMINFO = 55

_SEGMENT_SIZE = struct.Struct("=H")  # as we send it
_GRO_SIZE = struct.Struct("=i")  # as it is received
_GRO_SPACE = socket.CMSG_SPACE(_GRO_SIZE.size)
_MEMINFO = struct.Struct("=9I")
_SOCK_FPROG = struct.Struct("HP")  # how many instructions, and where
_BUFFER_BYTES = 8 << 20

# What one datagram's fate means, by errno; everything else is the underlay's refusal.
_REASONS = {
    errno.EAGAIN: DropReason.SOCKET_FULL,
    errno.ENOBUFS: DropReason.SOCKET_FULL,
    errno.EMSGSIZE: DropReason.TOO_BIG,
}
# What kernels answer to several segments when the network card cannot sum them up.  EINVAL is about one next hop only:
# a blackhole route to it, or, in older kernels, a segment that is longer than the path's MTU.
_GSO_REFUSED = errno.EIO


class UdpSocket:
    """A bound, non-blocking socket.  ``gso``, ``gro``: whether several datagrams are sent and received as one."""

    def __init__(self, address: IPv4Address, port: int, *, gso: bool = True, gro: bool = True) -> None:
        """Bind, and use ``gso`` and ``gro`` if the kernel has them.  Raises HostError."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.gso = gso and self._has(_UDP_SEGMENT, 0)
        self.gro = gro and self._has(_UDP_GRO, 1)
        for option, forced in ((socket.SO_RCVBUF, _SO_RCVBUFFORCE), (socket.SO_SNDBUF, _SO_SNDBUFFORCE)):
            self._socket.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
            with suppress(PermissionError):  # beyond the system's limit only with CAP_NET_ADMIN
                self._socket.setsockopt(socket.SOL_SOCKET, forced, _BUFFER_BYTES)
        try:
            self._socket.bind((str(address), port))
        except OSError as error:
            self._socket.close()
            hint = "; is another flannel running?" if error.errno == errno.EADDRINUSE else ""
            raise HostError(f"cannot listen on UDP {address}:{port}: {error.strerror}{hint}") from error

    def fileno(self) -> int:
        """For the event loop."""
        return self._socket.fileno()

    def receive_into(self, view: memoryview) -> tuple[int, int, tuple[str, int]] | None:
        """The next datagrams, put at the start of ``view``; None when there are none.

        Shapes: (length, segment_size, sender), the sender as (dotted address, port).
        """
        try:
            if not self.gro:
                length, sender = self._socket.recvfrom_into(view)
                return length, length, sender
            length, controls, _, sender = self._socket.recvmsg_into([view], _GRO_SPACE)
        except OSError:
            # EAGAIN, or an ICMP error about something that we sent earlier: it is read by asking for it.
            return None
        return length, _GRO_SIZE.unpack(controls[0][2])[0] if controls else length, sender

    def send(self, data: memoryview | bytes, segment_size: int, to: tuple[str, int]) -> DropReason | None:
        """Send datagrams of ``segment_size``, the last maybe shorter; the reason when they could not be sent."""
        try:
            if len(data) <= segment_size:
                self._socket.sendto(data, to)
            else:
                control = (socket.IPPROTO_UDP, _UDP_SEGMENT, _SEGMENT_SIZE.pack(segment_size))
                self._socket.sendmsg([data], [control], 0, to)
        except OSError as error:
            if error.errno == _GSO_REFUSED and len(data) > segment_size:
                self.gso = False
                log.warning("The kernel refuses UDP_SEGMENT (%s), sending datagrams one by one", error.strerror)
            return _REASONS.get(error.errno or 0, DropReason.SEND_FAILED)
        return None

    def accept_only(self, senders: Collection[str], port: int) -> None:
        """Have the kernel refuse most of what does not come from these dotted addresses and this port.

        A kernel that cannot do that refuses nothing.
        """
        if len(senders) > sender_filter.MAX_SENDERS or not self._attach(sender_filter.program(senders, port)):
            with suppress(OSError):  # there is none
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)

    def refused(self) -> int:
        """Datagrams that the kernel did not give us: of unknown senders, or when the receive buffer was full.

        It does not tell them apart.  Source: sock_diag.h, SK_MEMINFO_DROPS.
        """
        info = self._socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
        return int(_MEMINFO.unpack(info)[8])

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _attach(self, program: list[sender_filter.Instruction]) -> bool:
        code = ctypes.create_string_buffer(sender_filter.encode(program))
        try:
            self._socket.setsockopt(
                socket.SOL_SOCKET, _SO_ATTACH_FILTER, _SOCK_FPROG.pack(len(program), ctypes.addressof(code))
            )
        except OSError:  # old kernels have room for fewer instructions: net.core.optmem_max
            return False
        return True

    def _has(self, option: int, value: int) -> bool:
        try:
            self._socket.setsockopt(socket.IPPROTO_UDP, option, value)
        except OSError:
            return False
        return True
