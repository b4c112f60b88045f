"""Send probes from one host of an overlay to all peers; a script that runs on each host.

probe.py SECONDS OWN_IP PEER_IP...

Print "listening".  From the first to the second line of stdin, send every peer a numbered datagram every SECONDS; then
print how many each peer was sent.  After the third line, when no more arrive, print as JSON what was received from each
peer: the count of different numbers, the next expected number, and the first missing ones.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from contextlib import suppress
from typing import Any

PORT = 5005
BUFFER_BYTES = 8 << 20
SO_RCVBUFFORCE = 33
MISSING_REPORTED = 20
# Datagrams sent before the third line may still be in transit.
QUIET_SECONDS = 0.5


class Received:
    """The numbers that arrived from one peer."""

    def __init__(self) -> None:
        self._next = 0
        self._missing: set[int] = set()

    def add(self, number: int) -> None:
        """Add a number, in any order."""
        if number >= self._next:
            self._missing.update(range(self._next, number))
            self._next = number + 1
        self._missing.discard(number)

    def report(self) -> dict[str, Any]:
        """Return what the script prints."""
        return {
            "count": self._next - len(self._missing),
            "next": self._next,
            "missing": sorted(self._missing)[:MISSING_REPORTED],
        }


def main(seconds: str, own: str, *peers: str) -> None:
    received = {peer: Received() for peer in peers}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        sock.bind((own, PORT))
        print("listening", flush=True)
        _receive_until_input(sock, received)
        print(_exchange_until_input(sock, received, float(seconds)), flush=True)
        _receive_until_input(sock, received)
        while select.select([sock], [], [], QUIET_SECONDS)[0]:
            _receive(sock, received)
    print(json.dumps({peer: numbers.report() for peer, numbers in received.items()}))


def _exchange_until_input(sock: socket.socket, received: dict[str, Received], seconds: float) -> int:
    """Send and receive until stdin is readable.  Return how many datagrams each peer was sent."""
    sent, due = 0, time.monotonic()
    while not _receive_until_input(sock, received, due):
        for peer in received:
            with suppress(OSError):  # the datagram counts as sent, and will be missing
                sock.sendto(sent.to_bytes(4), (peer, PORT))
        sent, due = sent + 1, due + seconds
    return sent


def _receive_until_input(sock: socket.socket, received: dict[str, Received], end: float | None = None) -> bool:
    """Receive until stdin has a line, and read the line.  Return False if ``end`` came first."""
    while end is None or time.monotonic() < end:
        patience = None if end is None else max(end - time.monotonic(), 0)
        readable, _, _ = select.select([sock, sys.stdin], [], [], patience)
        if sock in readable:
            _receive(sock, received)
        if sys.stdin in readable:
            sys.stdin.readline()
            return True
    return False


def _receive(sock: socket.socket, received: dict[str, Received]) -> None:
    with suppress(BlockingIOError):
        while True:
            datagram, (peer, _) = sock.recvfrom(64, socket.MSG_DONTWAIT)
            received[peer].add(int.from_bytes(datagram))


if __name__ == "__main__":
    main(*sys.argv[1:])
