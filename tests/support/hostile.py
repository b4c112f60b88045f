"""A container that attacks, and what sees the attack: run as a script inside a namespace.

send DEVICE MAC     send each packet of stdin, one in hex on each line, in a frame to that MAC; print how many were sent
flood DEVICE MAC    print "flooding", then send them again and again as fast as it goes, until killed
sniff DEVICE WAY    print "listening", then source address and label of what goes in or out by the device, each label
                    once, until killed

A label is what stands between "attack:" and ";" in a packet.  Frames go past the container's own network stack, which
would refuse most of these packets.
"""

from __future__ import annotations

import itertools
import re
import socket
import sys

ETH_P_ALL = 3
ETH_P_IP = b"\x08\x00"
PACKET_OUTGOING = 4
BUFFER_BYTES = 8 << 20
SO_RCVBUFFORCE = 33
_LABEL = re.compile(rb"attack:([^;]+);")


def _frames(device: str, mac: str) -> tuple[socket.socket, list[bytes]]:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sock.bind((device, 0))
    head = bytes.fromhex(mac.replace(":", "")) + sock.getsockname()[4] + ETH_P_IP
    return sock, [head + bytes.fromhex(line) for line in sys.stdin]


def send(device: str, mac: str) -> None:
    sock, frames = _frames(device, mac)
    print(sum(_sent(sock, frame) for frame in frames))


def _sent(sock: socket.socket, frame: bytes) -> bool:
    try:
        return sock.send(frame) > 0
    except OSError:  # longer than the device takes, or its queue is full
        return False


def flood(device: str, mac: str) -> None:
    sock, frames = _frames(device, mac)
    print("flooding", flush=True)
    for frame in itertools.cycle(frames):
        _sent(sock, frame)


def sniff(device: str, way: str) -> None:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    sock.bind((device, ETH_P_ALL))
    print("listening", flush=True)
    seen: set[bytes] = set()
    while True:
        data, address = sock.recvfrom(1 << 17)
        if (address[2] == PACKET_OUTGOING) is (way == "out"):
            for label in _LABEL.findall(data):
                if label not in seen:
                    seen.add(label)
                    print(socket.inet_ntoa(data[12:16]), label.decode(), flush=True)


if __name__ == "__main__":
    {"send": send, "flood": flood, "sniff": sniff}[sys.argv[1]](*sys.argv[2:])
