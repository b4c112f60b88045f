"""The UDP socket that carries the overlay's datagrams.  Source: udp(7), ip(7)."""

from __future__ import annotations

import errno
import socket
from ipaddress import IPv4Address

from flannelpy.errors import HostError
from flannelpy.packet.drops import DropReason

# What one datagram's fate means, by errno; everything else is the underlay's refusal.
_REASONS = {
    errno.EAGAIN: DropReason.SOCKET_FULL,
    errno.ENOBUFS: DropReason.SOCKET_FULL,
    errno.EMSGSIZE: DropReason.TOO_BIG,
}


class UdpSocket:
    """A bound, non-blocking socket."""

    def __init__(self, address: IPv4Address, port: int) -> None:
        """Bind.  Raises HostError."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.bind((str(address), port))
        except OSError as error:
            self._socket.close()
            hint = "; is another flannel running?" if error.errno == errno.EADDRINUSE else ""
            raise HostError(f"cannot listen on UDP {address}:{port}: {error.strerror}{hint}") from error

    def fileno(self) -> int:
        """For the event loop."""
        return self._socket.fileno()

    def receive_into(self, view: memoryview) -> int | None:
        """Length of the next datagram, put at the start of ``view``; None when there is none."""
        try:
            return self._socket.recv_into(view)
        except OSError:
            # EAGAIN, or an ICMP error about something that we sent earlier: it is read by asking for it.
            return None

    def send(self, datagram: memoryview | bytes, to: tuple[str, int]) -> DropReason | None:
        """Send one datagram; the reason when it could not be sent."""
        try:
            self._socket.sendto(datagram, to)
        except OSError as error:
            return _REASONS.get(error.errno or 0, DropReason.SEND_FAILED)
        return None

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
