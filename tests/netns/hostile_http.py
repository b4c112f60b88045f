"""Attacks an HTTP server until it is ended: idle, slow and half-closed clients, any bytes, huge headers, odd bodies.

usage: hostile_http.py ADDRESS PORT.  Prints a line when the idle connections are there.
"""

from __future__ import annotations

import random
import socket
import sys
from contextlib import suppress

IDLE = 1000
CHUNKED = b"GET /readyz HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def main(address: tuple[str, int]) -> None:
    """Open the idle connections, then send one attack after the other, and a byte on some idle ones."""
    rng = random.Random(14)
    idle = [socket.create_connection(address, 10) for _ in range(IDLE)]
    print(IDLE, "idle connections", flush=True)
    while True:
        attacks = (
            rng.randbytes(rng.randrange(1, 2000)),
            b"GET /metrics HTTP/1.1\r\n" + b"a: b\r\n" * 20_000,
            b"GET /" + b"x" * 1_000_000,
            b"GET /readyz?verbose HTTP/1.1\r\nHost: evil.example\r\n\r\n",
            b"POST /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n" + bytes(100_000),
            CHUNKED + b"ffffffffffffffff\r\n" + bytes(10_000),
            CHUNKED + b"1\r\na\r\n" * 10_000,
            b"GET /status.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 1000,
            b"GET /metrics HTTP/1.0\r\n\r\n",
            b"",
        )
        for attack in attacks:
            for is_half_closed in (False, True):
                with suppress(OSError), socket.create_connection(address, 10) as client:
                    client.sendall(attack)
                    if is_half_closed:
                        client.shutdown(socket.SHUT_WR)
                        client.recv(1)
        for slow in rng.sample(idle, 20):
            with suppress(OSError):
                slow.send(b"G")


if __name__ == "__main__":
    main((sys.argv[1], int(sys.argv[2])))
