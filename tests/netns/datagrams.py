"""Send UDP datagrams from one port to several, and count the answers: ``PORT ADDRESS FIRST LAST SECONDS``.

Print ``sent`` after the first round, and the number of received datagrams in the end.
"""

from __future__ import annotations

import socket
import sys
import time
from contextlib import suppress

SILENCE = 0.2


def main() -> None:
    port, address, first, last, seconds = sys.argv[1:6]
    end = time.monotonic() + float(seconds)
    received = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", int(port)))
        sock.settimeout(SILENCE)
        for target in range(int(first), int(last) + 1):
            with suppress(OSError):  # an ICMP error about an earlier one
                sock.sendto(b"E" + bytes(27), (address, target))
        print("sent", flush=True)
        while time.monotonic() < end:
            with suppress(OSError):
                sock.recv(2000)
                received += 1
    print(received)


if __name__ == "__main__":
    main()
