"""The UDP socket that sends and receives the overlay's datagrams, many at a time if the kernel supports it.

Source: udp(7), ip(7), include/uapi/linux/udp.h.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import IPv4Address

from flannelpy.datapath import queue_selection
from flannelpy.datapath.queue_selection import Instruction
from flannelpy.errors import HostError
from flannelpy.packet.drops import DropReason

log = logging.getLogger(__name__)

# Numbers that the socket module has no names for.
_SO_ATTACH_FILTER = 26
_UDP_SEGMENT = 103
_UDP_GRO = 104
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_SO_MEMINFO = 55
_SO_ATTACH_REUSEPORT_CBPF = 51

_SEGMENT_SIZE = struct.Struct("=H")  # as we send it
_GRO_SIZE = struct.Struct("=i")  # as it is received
_GRO_SPACE = socket.CMSG_SPACE(_GRO_SIZE.size)
_MEMINFO = struct.Struct("=9I")
_SOCK_FPROG = struct.Struct("HP")  # number of instructions, and their address
_SEND_BYTES = 8 << 20
# What TCP fills without loss.  The kernel doubles the value, because it counts packets with their overhead.
_RECEIVE_BYTES = 4 << 20
# One queue for unknown senders, the others for peers.  The kernel needs memory for received datagrams only.
_QUEUES = 32

# The drop reason for each errno of a send; every other errno means that the underlay rejected the datagram.
_REASONS = {
    errno.EAGAIN: DropReason.SOCKET_FULL,
    errno.ENOBUFS: DropReason.SOCKET_FULL,
    errno.EMSGSIZE: DropReason.TOO_BIG,
}
# The errno for several segments if the network card cannot compute their checksums.  EINVAL is about one next hop only:
# a blackhole route to it, or, in older kernels, a segment that is longer than the path's MTU.
_GSO_REFUSED = errno.EIO


class UdpQueue:
    """A queue of received datagrams."""

    def __init__(self, end: socket.socket, *, gro: bool) -> None:
        self._socket = end
        self.gro = gro and _has(end, _UDP_GRO, 1)
        _set_buffer(end, socket.SO_RCVBUF, _SO_RCVBUFFORCE, _RECEIVE_BYTES)

    def fileno(self) -> int:
        """Return the descriptor, for the event loop."""
        return self._socket.fileno()

    def receive_into(self, view: memoryview) -> tuple[int, int, tuple[str, int]] | None:
        """Read the next datagrams to the start of ``view``; return None if there are none.

        Shapes: (length, segment_size, sender), the sender as (dotted address, port).
        """
        try:
            if not self.gro:
                length, sender = self._socket.recvfrom_into(view)
                return length, length, sender
            length, controls, _, sender = self._socket.recvmsg_into([view], _GRO_SPACE)
        except OSError:
            # EAGAIN, or an ICMP error about an earlier datagram of ours, which this call has consumed.
            return None
        return length, _GRO_SIZE.unpack(controls[0][2])[0] if controls else length, sender

    def bind_like(self, other: socket.socket) -> None:
        """Bind to the address and port of ``other``, in one reuseport group.  Raises OSError."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._socket.bind(other.getsockname())

    def dropped(self) -> int:
        """Return how many datagrams the kernel dropped: the queue's filter dropped them, or the queue was full.

        Source: sock_diag.h, SK_MEMINFO_DROPS.
        """
        info = self._socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
        return int(_MEMINFO.unpack(info)[8])

    def close(self) -> None:
        """Close the queue's socket."""
        self._socket.close()


class UdpSocket(UdpQueue):
    """A bound, non-blocking socket.  ``gso``, ``gro``: whether several datagrams are sent and received as one.

    ``queues``: this socket, which receives everything until ``assign``, and those to which ``assign`` moves senders.
    """

    def __init__(self, address: IPv4Address, port: int, *, gso: bool = True, gro: bool = True) -> None:
        """Bind, and use ``gso`` and ``gro`` if the kernel has them.  Raises HostError."""
        super().__init__(_new_socket(), gro=gro)
        self.gso = gso and _has(self._socket, _UDP_SEGMENT, 0)
        _set_buffer(self._socket, socket.SO_SNDBUF, _SO_SNDBUFFORCE, _SEND_BYTES)
        try:
            self._socket.bind((str(address), port))
        except OSError as error:
            self._socket.close()
            hint = "; is another flannel running?" if error.errno == errno.EADDRINUSE else ""
            raise HostError(f"cannot listen on UDP {address}:{port}: {error.strerror}{hint}") from error
        self.queues: list[UdpQueue] = [self, *self._more_queues()]

    def send(self, data: memoryview | bytes, segment_size: int, to: tuple[str, int]) -> DropReason | None:
        """Send datagrams of ``segment_size`` bytes, the last maybe shorter; return the drop reason of a failure."""
        try:
            if len(data) <= segment_size:
                self._socket.sendto(data, to)
            else:
                control = (socket.IPPROTO_UDP, _UDP_SEGMENT, _SEGMENT_SIZE.pack(segment_size))
                self._socket.sendmsg([data], [control], 0, to)
        except OSError as error:
            if error.errno == _GSO_REFUSED and len(data) > segment_size:
                self.gso = False
                log.warning("Kernel rejected UDP_SEGMENT: %s; sending datagrams one by one", error.strerror)
            return _REASONS.get(error.errno or 0, DropReason.SEND_FAILED)
        return None

    def assign(self, senders: Mapping[str, int], port: int | None) -> None:
        """Have the kernel put datagrams from these dotted addresses and ``port`` into the queues with these numbers.

        ``port``: None for any.  All other datagrams go to queue 0.  If the program is too large for the kernel
        (net.core.optmem_max), a sender's address selects its queue.
        """
        count = len(self.queues)
        if count > 1 and not self._select(queue_selection.program(senders, port, count)):
            self._select(queue_selection.spread(count))

    def sample_unknown_senders(self) -> None:
        """Have the kernel drop most datagrams of queue 0, if ``assign`` gave known senders other queues."""
        if len(self.queues) > 1:
            _attach(self._socket, _SO_ATTACH_FILTER, queue_selection.SAMPLE)

    def kernel_drops(self) -> int:
        """Return how many datagrams the kernel dropped: of unknown senders, or because a queue was full."""
        return sum(queue.dropped() for queue in self.queues)

    def close(self) -> None:
        """Close all queues."""
        for queue in self.queues[1:]:
            queue.close()
        super().close()

    def _more_queues(self) -> list[UdpQueue]:
        """Return sockets with our address and port, which get no datagrams until ``assign``.

        Their list is empty if the kernel cannot select among sockets.  They are bound after ours, so that ours was
        bound without SO_REUSEPORT, and fails if another program has the port.
        """
        queues: list[UdpQueue] = []
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            for _ in range(1, _QUEUES):
                queues.append(UdpQueue(_new_socket(), gro=self.gro))
                queues[-1].bind_like(self._socket)
            if self._select(queue_selection.program({}, None, _QUEUES)):
                return queues
        except OSError as error:
            log.warning("Failed to create receive queues: %s; all peers share one", error.strerror)
        for queue in queues:
            queue.close()
        return []

    def _select(self, program: list[Instruction]) -> bool:
        return _attach(self._socket, _SO_ATTACH_REUSEPORT_CBPF, program)


def _new_socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)


def _has(end: socket.socket, option: int, value: int) -> bool:
    try:
        end.setsockopt(socket.IPPROTO_UDP, option, value)
    except OSError:
        return False
    return True


def _set_buffer(end: socket.socket, option: int, forced: int, size: int) -> None:
    """Set a buffer size; with CAP_NET_ADMIN also one beyond the system's limit."""
    end.setsockopt(socket.SOL_SOCKET, option, size)
    with suppress(PermissionError):
        end.setsockopt(socket.SOL_SOCKET, forced, size)


def _attach(end: socket.socket, option: int, program: list[Instruction]) -> bool:
    code = ctypes.create_string_buffer(queue_selection.encode(program))
    try:
        end.setsockopt(socket.SOL_SOCKET, option, _SOCK_FPROG.pack(len(program), ctypes.addressof(code)))
    except OSError:
        return False
    return True
