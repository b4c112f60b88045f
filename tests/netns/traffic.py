"""Send and receive traffic between two namespaces; a script that runs in each of them.

tcp-sink PORT           accept one connection, print "listening", then the SHA-256 and length of what came
tcp-peer PORT           accept one connection, print "listening", then the address that it came from
tcp-connect IP PORT     connect, and wait until the other side closes the connection
tcp-source IP PORT N    send N seeded random bytes, print their SHA-256 and length
tcp-stream IP PORT N    send seeded random bytes, N a second, until stdin ends, then print as tcp-source does
udp-echo PORT           print "listening", then send every datagram back until killed
udp-lengths IP PORT N   send datagrams of 0..N bytes, print the lengths whose echo did not come back equal
udp-super IP PORT       send many datagrams with one call, in several shapes, print the shapes that came back otherwise
udp-flood IP PORT N K   send datagrams of N bytes, K with one call, as fast as they go until killed
udp-error IP PORT       send one datagram to a port and print the error that comes back by its errno
tcp-error IP PORT       connect to a port and print the error by its errno
"""

from __future__ import annotations

import errno
import hashlib
import random
import select
import socket
import sys
from collections.abc import Callable
from contextlib import suppress

SEED = 8285
REPLY_DEADLINE = 2.0
IP_RECVERR = 11
SO_MAX_PACING_RATE = 47
UDP_SEGMENT = 103
#: (bytes, bytes in each datagram): the smallest and the largest, odd ones, with and without a shorter last datagram.
SUPER_SHAPES = [
    (64, 1),
    (45, 44),
    (64 * 37, 37),
    (64 * 500, 500),
    (13 * 1200 + 1, 1200),
    (44 * 1444, 1444),
    (5000, 1443),
]


def tcp_sink(port: str) -> None:
    with socket.create_server(("0.0.0.0", int(port))) as server:
        print("listening", flush=True)
        connection, _ = server.accept()
        digest, length = hashlib.sha256(), 0
        with connection:
            while block := connection.recv(1 << 20):
                digest.update(block)
                length += len(block)
        print(digest.hexdigest(), length)


def tcp_peer(port: str) -> None:
    with socket.create_server(("0.0.0.0", int(port))) as server:
        print("listening", flush=True)
        connection, (address, _) = server.accept()
        connection.close()
    print(address)


def tcp_connect(address: str, port: str) -> None:
    with socket.create_connection((address, int(port)), timeout=10) as connection:
        connection.recv(1)


def tcp_source(address: str, port: str, size: str) -> None:
    rng = random.Random(SEED)
    digest, left = hashlib.sha256(), int(size)
    with socket.create_connection((address, int(port)), timeout=30) as connection:
        while left:
            block = rng.randbytes(min(left, 1 << 20))
            digest.update(block)
            connection.sendall(block)
            left -= len(block)
    print(digest.hexdigest(), size)


def tcp_stream(address: str, port: str, rate: str) -> None:
    rng = random.Random(SEED)
    digest, length = hashlib.sha256(), 0
    with socket.create_connection((address, int(port)), timeout=30) as connection:
        connection.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, int(rate))
        while not select.select([sys.stdin], [], [], 0)[0]:
            block = rng.randbytes(1 << 16)
            digest.update(block)
            connection.sendall(block)
            length += len(block)
    print(digest.hexdigest(), length)


def udp_echo(port: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", int(port)))
        print("listening", flush=True)
        while True:
            datagram, sender = sock.recvfrom(65535)
            sock.sendto(datagram, sender)


def udp_lengths(address: str, port: str, longest: str) -> None:
    rng = random.Random(SEED)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(REPLY_DEADLINE)
        sock.connect((address, int(port)))
        print([length for length in range(int(longest) + 1) if not _echoed(sock, rng.randbytes(length))])


def _echoed(sock: socket.socket, payload: bytes) -> bool:
    sock.send(payload)
    try:
        return sock.recv(65535) == payload
    except TimeoutError:
        return False


def udp_super(address: str, port: str) -> None:
    rng = random.Random(SEED)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(REPLY_DEADLINE)
        sock.connect((address, int(port)))
        print([shape for shape in SUPER_SHAPES if not _echoed_in_pieces(sock, rng.randbytes(shape[0]), shape[1])])


def _echoed_in_pieces(sock: socket.socket, payload: bytes, size: int) -> bool:
    sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
    sock.send(payload)
    pieces = [payload[start : start + size] for start in range(0, len(payload), size)]
    try:
        return [sock.recv(65535) for _ in pieces] == pieces
    except TimeoutError:
        return False


def udp_flood(address: str, port: str, size: str, count: str) -> None:
    payload = random.Random(SEED).randbytes(int(size) * int(count))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((address, int(port)))
        if int(count) > 1:
            sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, int(size))
        while True:
            # A later call returns the errors of the path or the receiver; the flood continues.
            with suppress(OSError):
                sock.send(payload)


def udp_error(address: str, port: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        # Net unreachable is a transient error, which a socket gets only with IP_RECVERR (ip(7)).
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        sock.connect((address, int(port)))
        print(_errno_of(sock, lambda: sock.send(b"anybody there?") and sock.recv(1)))


def tcp_error(address: str, port: str) -> None:
    with socket.socket() as sock:
        print(_errno_of(sock, lambda: sock.connect((address, int(port)))))


def _errno_of(sock: socket.socket, attempt: Callable[[], object]) -> str:
    sock.settimeout(REPLY_DEADLINE)
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "no answer")
    return "no error"


if __name__ == "__main__":
    commands: dict[str, Callable[..., None]] = {
        "tcp-sink": tcp_sink,
        "tcp-peer": tcp_peer,
        "tcp-connect": tcp_connect,
        "tcp-source": tcp_source,
        "tcp-stream": tcp_stream,
        "udp-echo": udp_echo,
        "udp-lengths": udp_lengths,
        "udp-super": udp_super,
        "udp-flood": udp_flood,
        "udp-error": udp_error,
        "tcp-error": tcp_error,
    }
    commands[sys.argv[1]](*sys.argv[2:])
