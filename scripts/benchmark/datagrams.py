"""Datagrams between two namespaces; run as a script inside each of them.

send IP PORT SIZE RATE SECONDS   that many a second, in a burst each millisecond; print how many, and seconds it took
receive PORT                     print "listening"; when something came and nothing more does: how many, and seconds
                                 from the first to the last

iperf3 does more for each datagram than some contenders do, and would be what is measured.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from contextlib import suppress

PAUSE = 0.001
LONGEST_BURST = 256  # then the clock is looked at again
QUIET = 0.3
SO_RCVBUFFORCE = 33
BUFFER_BYTES = 8 << 20  # so much that what has arrived is not lost


def send(address: str, port: str, size: str, rate: str, seconds: str) -> None:
    """Send bursts; one that comes late is still sent, so the rate holds as long as the machine is fast enough."""
    payload, per_second = bytes(int(size)), float(rate)
    sent, total = 0, round(per_second * float(seconds))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((address, int(port)))
        put = sock.send
        began = now = time.perf_counter()
        ends = began + float(seconds)
        while sent < total and now < ends:
            due = min(total, 1 + int((now - began) * per_second))
            burst = min(due - sent, LONGEST_BURST)
            for _ in range(burst):
                put(payload)
            sent += burst
            if sent == due:
                time.sleep(PAUSE)
            now = time.perf_counter()
    print(sent, now - began)


def receive(port: str) -> None:
    """Receive until the end; the clock is read at every 64th datagram only."""
    buffer = bytearray(2048)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        sock.bind(("0.0.0.0", int(port)))
        print("listening", flush=True)
        take = sock.recv_into
        take(buffer)
        began = last = time.perf_counter()
        count = 1
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, round(QUIET * 1e6)))
        with suppress(BlockingIOError):
            while True:
                for _ in range(64):
                    take(buffer)
                    count += 1
                last = time.perf_counter()
    print(count, last - began)


if __name__ == "__main__":
    if sys.argv[1] == "send":
        send(*sys.argv[2:])
    else:
        receive(*sys.argv[2:])
