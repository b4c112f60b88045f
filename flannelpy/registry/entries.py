"""What several users of a registry do with single entries."""

from __future__ import annotations

from flannelpy.registry.base import KeyValue, Registry

# The lifetime of an entry between its creation, which needs one, and its becoming permanent.
_RESERVING_SECONDS = 60


async def find(registry: Registry, name: str) -> KeyValue | None:
    """Return the entry ``name``; None if there is none."""
    return next(iter((await registry.snapshot_of(name)).entries), None)


async def put(registry: Registry, name: str, value: str, lease_ttl: int | None, before: KeyValue | None) -> KeyValue:
    """Replace ``before`` (None: nothing) by an entry for ``lease_ttl`` seconds (None: no end), and return the entry.

    Raises KeyExists, CompareFailed, KeyNotFound.
    """
    if before is None:
        # A create needs a lifetime.
        before = await registry.create(name, value, _RESERVING_SECONDS if lease_ttl is None else lease_ttl)
        if lease_ttl is not None:
            return before
    return await registry.compare_and_swap(name, value, lease_ttl, before.version)
