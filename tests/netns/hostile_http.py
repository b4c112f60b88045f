"""Attacks an HTTP server until it is ended: idle connections, slow ones, any bytes, huge headers.

usage: hostile_http.py ADDRESS PORT.  Prints a line when the idle connections are there.
"""

from __future__ import annotations

import random
import socket
import sys
from contextlib import suppress

IDLE = 1000


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
        )
        for attack in attacks:
            with suppress(OSError), socket.create_connection(address, 10) as client:
                client.sendall(attack)
        for slow in rng.sample(idle, 20):
            with suppress(OSError):
                slow.send(b"G")


if __name__ == "__main__":
    main((sys.argv[1], int(sys.argv[2])))
