"""-etcd-api=auto: the store, of etcd's v2 and v3, that has the network config.

Only positive answers decide.  An etcd without the key, and one without the v2 API, both have no config in v2.  The v2
API is a flag of each member (up to etcd 3.5), so all endpoints have to be without it.  An endpoint that refuses, takes
too long or fails (5xx) has not answered, and the caller tries again.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from flannelpy.errors import ApiSwitchedOff, KeyNotFound, RegistryError, RegistryUnavailable
from flannelpy.registry.answers import undecided
from flannelpy.registry.base import Changes, KeyValue, Registry, Schema, Snapshot, all_names

if TYPE_CHECKING:
    from collections.abc import Callable

    from flannelpy.report import StoreReport

log = logging.getLogger(__name__)


class EitherRegistry:
    """The registry ``v2`` as long as it has a config, otherwise ``v3`` if that has one.

    ``read_config`` decides, each time until leases are used; the first use of leases decides for the rest of the run.
    """

    def __init__(self, v2: Registry, v3: Registry) -> None:
        self._v2 = v2
        self._v3 = v3
        self._chosen: Registry | None = None
        self._is_final = False
        self._comparison: asyncio.Task[None] | None = None

    @property
    def schema(self) -> Schema:
        """The schema of the chosen store, as Registry demands."""
        return self._known.schema

    @property
    def relist_seconds(self) -> float:
        """The longest quiet watch of the chosen store, as Registry demands."""
        return self._known.relist_seconds

    @property
    def _known(self) -> Registry:
        assert self._chosen is not None, "read_config comes first"
        return self._chosen

    def store_reports(self) -> tuple[StoreReport, ...]:
        """Return when the chosen store answered, as Registry demands; until there is one, when either did."""
        if self._chosen:
            return self._chosen.store_reports()
        return (undecided([*self._v2.store_reports(), *self._v3.store_reports()]),)

    async def read_config(self) -> str:
        """Read the network config, as Registry demands.  Raises KeyNotFound if neither store has one."""
        if self._is_final:
            return await self._known.read_config()
        chosen, config = await self._find_config()
        self._choose(chosen)
        return config

    async def wait_for_config_change(self, seconds: float) -> None:
        """Wait for a change, as Registry demands."""
        if self._chosen:
            await self._chosen.wait_for_config_change(seconds)
        else:
            await asyncio.sleep(seconds)

    async def snapshot(self, is_wanted: Callable[[str], bool] = all_names) -> Snapshot:
        """List the entries, as Registry demands."""
        return await (await self._final()).snapshot(is_wanted)

    async def snapshot_of(self, name: str) -> Snapshot:
        """Read an entry, as Registry demands."""
        return await (await self._final()).snapshot_of(name)

    async def create(self, name: str, value: str, lease_ttl: int) -> KeyValue:
        """Create an entry, as Registry demands."""
        return await (await self._final()).create(name, value, lease_ttl)

    async def compare_and_swap(self, name: str, value: str, lease_ttl: int | None, version: int) -> KeyValue:
        """Replace an entry, as Registry demands."""
        return await (await self._final()).compare_and_swap(name, value, lease_ttl, version)

    async def renew(self, name: str, value: str, lease_ttl: int, version: int) -> KeyValue:
        """Extend the lifetime of an entry, as Registry demands."""
        return await (await self._final()).renew(name, value, lease_ttl, version)

    async def compare_and_delete(self, name: str, version: int) -> None:
        """Delete an entry, as Registry demands."""
        await (await self._final()).compare_and_delete(name, version)

    async def watch(self, cursor: int, timeout: float) -> Changes:
        """Return what happens from ``cursor`` on, as Registry demands."""
        return await (await self._final()).watch(cursor, timeout)

    async def close(self) -> None:
        """Close both registries, as Registry demands."""
        if self._comparison:
            self._comparison.cancel()
        await self._v2.close()
        await self._v3.close()

    async def _find_config(self) -> tuple[Registry, str]:
        """Return the store that has the config, and the config.  Raises KeyNotFound, RegistryError."""
        try:
            return self._v2, await self._v2.read_config()
        except (KeyNotFound, ApiSwitchedOff) as missing:
            if self._chosen is self._v2 and isinstance(missing, ApiSwitchedOff) and not missing.is_certain:
                raise RegistryUnavailable(str(missing)) from missing  # v2 had a config
            not_in_v2 = missing
        try:
            return self._v3, await self._v3.read_config()
        except (KeyNotFound, ApiSwitchedOff) as missing:
            raise KeyNotFound(f"no network config in etcd: v2: {not_in_v2}; v3: {missing}") from missing
        except RegistryUnavailable as error:
            raise RegistryUnavailable(f"{error} (v3; the v2 API has no network config)") from error

    def _choose(self, chosen: Registry) -> None:
        if chosen is self._chosen:
            return
        self._chosen = chosen
        log.info("Found network config in etcd v%s: leases are kept there", chosen.schema.value)

    async def _final(self) -> Registry:
        """Return the store to use from now on.  Raises KeyNotFound if neither has a config, and RegistryError."""
        if self._chosen is None:
            self._choose((await self._find_config())[0])
        if not self._is_final:
            self._is_final = True
            if self._chosen is self._v2:
                self._comparison = asyncio.create_task(self._log_second_config())
        return self._known

    async def _log_second_config(self) -> None:
        """Log that both stores have a config, if so."""
        with suppress(RegistryError):
            await self._v3.read_config()
            log.warning(
                "Found network config in etcd v3 as well: v2 is used until the config there is deleted and flannelpy is"
                " restarted, or until -etcd-api=3"
            )
