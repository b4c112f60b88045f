"""HTTP connections with one deadline for a whole reply, for urllib3's pools.

urllib3's time-outs apply to each read of the socket, so a server that sends a byte a second holds a call for ever.
In this module, the time-out that urllib3 computes for a request applies to the whole reply: status line, headers and
body, over TCP or TLS.  That time-out is the rest of ``urllib3.Timeout(total=…)`` after connecting and sending.

A reply has at most ``MOST_BYTES``.  Only for the body of a list the caller lifts that limit (``allow_long``), because a
list of ten thousand leases over a slow link is legitimate.  While such a body makes progress, it gets more time: one
second for each ``BYTES_PER_SECOND`` received, and ``LONGEST_REPLY`` seconds at most.  flannelpy rejects a reply with a
content encoding: no request asks for an encoding, and a kilobyte can expand to a megabyte.

Connecting is bounded as well.  The addresses of a name share the time-out equally, so an unreachable address leaves
time for the next.  The TLS handshake gets the rest of the connection's time; OpenSSL's binding bounds the handshake as
a whole.  The resolver bounds name resolution (resolv.conf: timeout, attempts).

The first request imports this module, because the import of urllib3 takes a tenth of a second.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import http.client
import io
import socket
import time
from typing import TYPE_CHECKING, Any, cast

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import WriteableBuffer
    from urllib3.response import HTTPResponse

BYTES_PER_SECOND = 65536
LONGEST_REPLY = 60.0  # seconds
# The reply to a write has two values.  etcd accepts values of 1.5 MB; JSON may write each byte as six bytes.
MOST_BYTES = 32 << 20

_SHORTEST_WAIT = 0.001  # 0 would mean a non-blocking socket
# TCP keep-alive detects a connection that the server or a firewall has forgotten, after half a minute.
_KEEP_ALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)


def bound(pools: urllib3.PoolManager) -> None:
    """Make ``pools`` use the connections of this module, with TCP keep-alive."""
    pools.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
    pools.connection_pool_kw["socket_options"] = [*HTTPConnection.default_socket_options, *_KEEP_ALIVE]


def allow_long(response: urllib3.BaseHTTPResponse) -> None:
    """Allow the body of ``response`` any length, and more time while it makes progress."""
    cast("_Bounded", response.connection).reader.allow_long()


def lift_deadline(response: urllib3.BaseHTTPResponse) -> Callable[[], None]:
    """Lift the deadline of the body of ``response``; return a function that ends a read of it from any thread."""
    connection = cast("_Bounded", response.connection)
    connection.reader.allow_long()
    connection.reader.seconds = None
    return connection.reader.interrupt


class _Reader(io.RawIOBase):
    """The bytes of one reply.  A read raises TimeoutError after the deadline, OSError after too many bytes."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, seconds: float | None) -> None:
        self._raw = raw
        self._sock = sock
        self.seconds = seconds
        self._began = time.monotonic()
        self._received = 0
        self._is_long = False

    def allow_long(self) -> None:
        self._is_long, self._received = True, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        self._sock.settimeout(self._time_left())
        count = self._raw.readinto(buffer)
        self._received += count or 0
        if self._received > MOST_BYTES and not self._is_long:
            raise OSError(errno.EMSGSIZE, f"a reply of more than {MOST_BYTES} bytes")
        return cast("int | None", count)

    def _time_left(self) -> float | None:
        if self.seconds is None:
            return None
        more = self._received / BYTES_PER_SECOND if self._is_long else 0
        left = self._began + min(self.seconds + more, max(LONGEST_REPLY, self.seconds)) - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return max(left, _SHORTEST_WAIT)

    def interrupt(self) -> None:
        """End the read that another thread is waiting in, and all later reads."""
        with contextlib.suppress(OSError):  # it is closed
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)  # not SSLSocket's, which is not thread-safe

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Reply(http.client.HTTPResponse):
    def __init__(self, connection: _Bounded, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        connection.reader = _Reader(self.fp.detach(), sock, connection.timeout)
        self.fp = io.BufferedReader(connection.reader)

    def begin(self) -> None:
        super().begin()
        if encoding := self.getheader("Content-Encoding"):
            raise http.client.HTTPException(f"a reply in the encoding {encoding!r}, which was not asked for")


class _Bounded(HTTPConnection):
    reader: _Reader
    timeout: float | None

    def _new_conn(self) -> socket.socket:
        timeout = self.timeout
        if timeout is None:
            return super()._new_conn()
        began = time.monotonic()
        self.timeout = timeout / self._count_addresses()
        try:
            sock = super()._new_conn()
        finally:
            self.timeout = timeout
        sock.settimeout(max(began + timeout - time.monotonic(), _SHORTEST_WAIT))
        return sock

    def _count_addresses(self) -> int:
        try:
            return len(socket.getaddrinfo(self.host.strip("[]"), self.port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError):  # connecting reports it
            return 1

    def getresponse(self) -> HTTPResponse:  # type: ignore[override]
        self.response_class = functools.partial(_Reply, self)  # type: ignore[assignment]
        return super().getresponse()


class _BoundedTls(_Bounded, HTTPSConnection):
    pass


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Bounded


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _BoundedTls
