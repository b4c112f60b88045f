"""copy-to-v3: copy config and leases of all networks from etcd's v2 store to its v3 store, for a change-over.

Networks are copied independently of each other: one that cannot be copied is one line of the log, and the exit code is
1 in the end.  network_copy.py copies one network.
Counterpart: none.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from flannelpy import logs
from flannelpy.commands.network_copy import NetworkCopy
from flannelpy.errors import ConfigError, RegistryError
from flannelpy.registry.connect import open_as
from flannelpy.registry.etcd_v2 import EtcdV2Registry
from flannelpy.registry.etcd_v3 import EtcdV3Registry
from flannelpy.tasks import run_together

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from flannelpy.options import Options

log = logging.getLogger(__name__)


def run(options: Options, is_following: bool) -> int:
    """Copy the config and leases of all networks; return the exit code."""
    logs.configure(options.verbosity)
    try:
        return asyncio.run(_until_signalled(options) if is_following else _copy_all(options))
    except Exception as error:
        return logs.log_error(log, error)


async def _copy_all(options: Options) -> int:
    """Copy each network once; return 1 if anything was not copied, else 0."""
    return max([await _copy(options, name, is_following=False) for name in _names(options)])


async def _until_signalled(options: Options) -> int:
    """Follow all networks until they end, or until SIGINT, SIGTERM or SIGHUP; return 1 if one could not be copied."""
    codes = [0]

    async def follow(name: str) -> None:
        codes.append(await _copy(options, name, is_following=True))

    task = asyncio.ensure_future(run_together(*map(follow, _names(options))))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with suppress(asyncio.CancelledError):
        await task
    return max(codes)


def _names(options: Options) -> tuple[str, ...]:
    return options.networks or ("",)


async def _copy(options: Options, name: str, *, is_following: bool) -> int:
    """Copy one network; return 1 if it could not be copied, or if a single copy left anything out, else 0."""
    async with _opened(options, name) as copy:
        try:
            if is_following:
                await copy.follow()
                return 0
            await copy.make()
            return int(copy.has_gaps)
        except (RegistryError, ConfigError) as error:
            return logs.log_error(log, error, ": this network is not copied")


@asynccontextmanager
async def _opened(options: Options, name: str) -> AsyncIterator[NetworkCopy]:
    """Open both stores of a network, which log lines name from now on."""
    logs.network.set(name)
    v2, v3 = open_as(EtcdV2Registry, options, name), open_as(EtcdV3Registry, options, name)
    try:
        yield NetworkCopy(v2, v3, name)
    finally:
        await v2.close()
        await v3.close()
