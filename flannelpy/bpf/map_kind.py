"""The maps that eBPF programs share with other programs.  Pure.

Source: enum bpf_map_type in include/uapi/linux/bpf.h of the kernel.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

_NO_PREALLOC = 1


class MapType(enum.IntEnum):
    """The kinds of maps; one per processor has a value for each."""

    HASH = 1
    ARRAY = 2
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LPM_TRIE = 11  # the longest prefix matches
    DEVMAP = 14  # indices of interfaces; an entry is gone when its interface is


class MapKind(NamedTuple):
    """What the kernel wants to know when it creates a map; sizes in bytes."""

    type: MapType
    key_size: int
    value_size: int
    entries: int

    @property
    def flags(self) -> int:
        """Have the kernel allocate entries of a hash or trie one by one, as they come."""
        return _NO_PREALLOC if self.type in (MapType.HASH, MapType.PERCPU_HASH, MapType.LPM_TRIE) else 0

    @property
    def per_cpu(self) -> bool:
        """Return whether each processor has a value of its own."""
        return self.type in (MapType.PERCPU_HASH, MapType.PERCPU_ARRAY)
