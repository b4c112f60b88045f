"""Has glibc return freed memory to the kernel.

A list of all leases is read in a thread of its own.  By default, glibc may give each such thread a heap of its own.
Once a large block was freed, it also allocates blocks of that size from a heap.  A daemon whose store holds large
values would then keep several times the memory that it needs.
Source: mallopt(3).
"""

import ctypes
from contextlib import suppress

_MMAP_THRESHOLD, _ARENA_MAX = -3, -8  # of malloc.h
_LARGE = 128 * 1024
_HEAPS = 2


def keep_small() -> None:
    """Have glibc return freed blocks of 128 KB and more, and share two heaps among all threads."""
    with suppress(AttributeError, OSError):  # another C library has no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGE)
        mallopt(_ARENA_MAX, _HEAPS)
