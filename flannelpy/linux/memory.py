"""Has glibc give memory back.

A list of all leases is read in a thread of its own.  By default each such thread may get a heap of its own, and a large
block that was freed once makes later ones of its size come from a heap: a daemon whose store holds large values then
keeps several times what it needs.
Source: mallopt(3).
"""

import ctypes
from contextlib import suppress

_MMAP_THRESHOLD, _ARENA_MAX = -3, -8  # of malloc.h
_LARGE = 128 * 1024
_HEAPS = 2


def keep_small() -> None:
    """From now on blocks from 128 KB on are given back when they are freed, and threads share two heaps."""
    with suppress(AttributeError, OSError):  # another C library has other habits
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGE)
        mallopt(_ARENA_MAX, _HEAPS)
