"""What a thread has freed is given back."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import re, sys, threading
from pathlib import Path
from flannelpy.linux import memory

if sys.argv[1] == "kept small":
    memory.keep_small()

def work():
    blocks = [bytes(200_000 + number * 1000) for number in range(100)]
    small.append(bytes(1000))
    del blocks

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

small = []
before = resident()
for _ in range(20):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
print(resident() - before)
"""


def test_freed_large_blocks_are_returned_to_the_kernel() -> None:
    """By default the same program keeps 20 MB and more."""
    grown = [
        int(subprocess.run([sys.executable, "-c", _PROGRAM, how], check=True, capture_output=True).stdout)
        for how in ("kept small", "as it is")
    ]
    assert grown[0] < 2048
    assert grown[0] < grown[1]
