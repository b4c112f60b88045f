"""Whether a program delays packets: round trips while it runs, and while another program runs in its place.

The other program uses as much processor time, and has nothing to do with flannelpy.  So both have the load of the
machine, and the delays that any busy program causes.
"""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address

from lab import Node

WINDOWS = 5
ROUNDS = 3
PINGS = 50
#: Two of a hundred may be late, because the machine delays some.
LATE = ROUNDS * PINGS // 50
#: A request and its reply each pass the daemon once, and wait for one turn of its event loop, which takes 2 ms at most.
MAX_MILLISECONDS = 4.0
# Connects to a socket that does not exist, all the time.
_BUSY = """
import contextlib, socket
while True:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.connect("missing")
"""


def assert_no_packet_is_late(one: Node, address: IPv4Address, disturber: subprocess.Popen[str]) -> None:
    """Assert that the program delays pings from ``one`` no more than another busy program, and still runs in the end.

    ``disturber`` runs with the lowest priority, too, and in the same way in each window, so one of them is the proof.
    """
    late = math.inf
    with ended(one.popen("nice", "-n19", sys.executable, "-I", "-S", "-c", _BUSY)) as busy:
        for _ in range(WINDOWS):
            late = min(late, _lateness(one, address, disturber, busy))
            assert disturber.poll() is None, "the program has ended"
            if late <= MAX_MILLISECONDS:
                return
    raise AssertionError(f"packets were {late:.1f} ms late in the best window")


def _lateness(one: Node, address: IPv4Address, disturber: subprocess.Popen[str], busy: subprocess.Popen[str]) -> float:
    """Return how many milliseconds later pings are answered while ``disturber`` runs than while ``busy`` does."""
    other: list[float] = []
    running: list[float] = []
    for _ in range(ROUNDS):
        for times, runs, pauses in ((other, busy, disturber), (running, disturber, busy)):
            os.killpg(pauses.pid, signal.SIGSTOP)
            os.killpg(runs.pid, signal.SIGCONT)
            times += _round_trips(one, address)
    other.sort(reverse=True)
    running.sort(reverse=True)
    print(f"round trips in ms, the longest: {running[: LATE + 1]}, beside another program: {other[: LATE + 1]}")
    assert len(running) == len(other) == ROUNDS * PINGS, "a ping was lost"
    return running[LATE] - other[LATE]


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Kill the process at the end, also if it is frozen: it must not disturb the next test."""
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _round_trips(one: Node, address: IPv4Address) -> list[float]:
    """Return the milliseconds of the pings that were answered."""
    done = one.run("ping", "-n", f"-c{PINGS}", "-i0.01", "-W2", str(address), check=False)
    return [float(found) for found in re.findall(r"time=([\d.]+) ms", done.stdout)]
