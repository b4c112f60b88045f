"""Whether a program delays packets: round trips while it is frozen and while it runs, in turn.

So the load of the machine, and what else the hosts do, is in both.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from ipaddress import IPv4Address

from lab import Node

ROUNDS = 3
PINGS = 60
#: Two of a hundred may be late, because the machine delays some.
LATE = ROUNDS * PINGS // 50
#: A request and its reply each pass the daemon once, and wait for one turn of its event loop, which takes 2 ms at most.
MAX_MILLISECONDS = 4.0


def assert_no_packet_is_late(one: Node, address: IPv4Address, disturber: subprocess.Popen[str]) -> None:
    """Assert that pings from ``one`` are answered as fast while the program runs, and that it runs in the end."""
    frozen: list[float] = []
    running: list[float] = []
    for _ in range(ROUNDS):
        for times, number in ((frozen, signal.SIGSTOP), (running, signal.SIGCONT)):
            os.killpg(disturber.pid, number)
            times += _round_trips(one, address)
    assert disturber.poll() is None, "the program has ended"
    frozen.sort(reverse=True)
    running.sort(reverse=True)
    print(f"round trips in ms, the longest: {running[: LATE + 1]}, while the program is frozen: {frozen[: LATE + 1]}")
    assert len(running) == len(frozen) == ROUNDS * PINGS, "a ping was lost"
    assert running[LATE] <= frozen[LATE] + MAX_MILLISECONDS


def _round_trips(one: Node, address: IPv4Address) -> list[float]:
    """Return the milliseconds of the pings that were answered."""
    done = one.run("ping", "-n", f"-c{PINGS}", "-i0.01", "-W2", str(address), check=False)
    return [float(found) for found in re.findall(r"time=([\d.]+) ms", done.stdout)]
