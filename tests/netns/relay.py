"""Reorder and duplicate datagrams between two hosts; a script that runs in the switch.

relay.py PUBLIC_IP HOST PUBLIC_IP HOST

Each host knows its peer by a public IP of the relay.  The relay forwards datagrams for that IP to the peer, with the
sender's public IP: some twice, some after later ones, all of them.  Print "listening", and at the end as JSON how many
datagrams were "duplicated" and "delayed".
"""

from __future__ import annotations

import json
import random
import selectors
import signal
import socket
import sys
from collections import Counter, deque

PORT = 8285
BUFFER_BYTES = 8 << 20
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33
DUPLICATED = 0.01
DELAYED = 0.01
# How many later datagrams overtake a delayed one, at most; TCP counts three as a loss.
OVERTAKERS = 12
# Without later datagrams, a delayed one is kept no longer than this.
IDLE_SECONDS = 0.002


class Way:
    """One direction: datagrams that arrive at ``inlet`` leave by ``outlet``."""

    def __init__(self, inlet: socket.socket, outlet: socket.socket, host: str, counts: Counter[str]) -> None:
        self.inlet = inlet
        self._outlet = outlet
        self._to = (host, PORT)
        self._counts = counts
        self._rng = random.Random(host)
        self._passed = 0
        self._delayed: deque[tuple[int, bytes]] = deque()

    def relay(self) -> None:
        """Relay the waiting datagrams, up to a limit."""
        for _ in range(64):
            try:
                datagram = self.inlet.recv(65535, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            self._pass_on(datagram)

    def flush(self) -> None:
        """Send the delayed datagrams."""
        while self._delayed:
            self._send(self._delayed.popleft()[1])

    def _pass_on(self, datagram: bytes) -> None:
        self._passed += 1
        fate = self._rng.random()
        if fate < DELAYED:
            self._counts["delayed"] += 1
            self._delayed.append((self._passed + self._rng.randint(1, OVERTAKERS), datagram))
        else:
            self._send(datagram)
            if fate < DELAYED + DUPLICATED:
                self._counts["duplicated"] += 1
                self._send(datagram)
        while self._delayed and self._delayed[0][0] <= self._passed:
            self._send(self._delayed.popleft()[1])

    def _send(self, datagram: bytes) -> None:
        self._outlet.sendto(datagram, self._to)


def _socket(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for option in (SO_RCVBUFFORCE, SO_SNDBUFFORCE):
        sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
    sock.bind((address, PORT))
    return sock


def main(one_public: str, one_host: str, other_public: str, other_host: str) -> None:
    one, other = _socket(one_public), _socket(other_public)
    counts: Counter[str] = Counter()
    ways = [Way(one, other, one_host, counts), Way(other, one, other_host, counts)]
    running = True

    def stop(*_: object) -> None:
        nonlocal running
        running = False

    signal.signal(signal.SIGTERM, stop)
    with selectors.DefaultSelector() as selector:
        for way in ways:
            selector.register(way.inlet, selectors.EVENT_READ, way)
        print("listening", flush=True)
        while running:
            ready = selector.select(IDLE_SECONDS)
            for key, _ in ready:
                key.data.relay()
            if not ready:
                for way in ways:
                    way.flush()
    print(json.dumps(counts))


if __name__ == "__main__":
    main(*sys.argv[1:])
