"""The composition root: builds everything, start and stop order, signals, readiness.

Start: external interface, network config, lease, socket and device, packets flow, masquerading, subnet file, READY.
Stop: packets cease, device and route go with it; lease and subnet file stay, so a restart changes nothing for Docker.
Only when another host holds the lease does the subnet file go, too.
Counterpart: main.go, network/network.go.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import signal
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from ipaddress import IPv4Address
from typing import Any

from flannelpy import logs, parts
from flannelpy.backend import base as backends
from flannelpy.backend.base import Backend
from flannelpy.backend.guard import Guard
from flannelpy.errors import FlannelError, HostError, LeaseLost
from flannelpy.linux import interface, iptables, packet_loop, systemd
from flannelpy.linux.clock import BootClock
from flannelpy.linux.interface import ExternalInterface
from flannelpy.linux.netlink import Netlink
from flannelpy.linux.ready_file import ReadyFile
from flannelpy.options import Options
from flannelpy.subnet import env_file
from flannelpy.subnet.config import NetworkConfig
from flannelpy.subnet.lease_table import LeaseEvent
from flannelpy.subnet.manager import SubnetManager
from flannelpy.subnet.renewal import Terms

log = logging.getLogger(__name__)

_STATUS_SECONDS = 60
# Signs of life per time that the watchdog allows.
_SIGNS_OF_LIFE = 3


def run(options: Options) -> int:
    """The whole life of the daemon; its exit code."""
    logs.configure(options.verbosity)
    try:
        packet_loop.run(_until_signalled(_serve(options)))
    except FlannelError as error:
        log.error("%s", error)
        return error.exit_code
    return 0


async def _until_signalled(work: Coroutine[Any, Any, None]) -> None:
    """Run ``work`` until it fails or SIGINT or SIGTERM comes; a second signal kills as if we had no handler."""
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(work)

    def stop() -> None:
        log.info("Exiting...")
        systemd.notify("STOPPING=1")
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        task.cancel()

    log.info("Installing signal handlers")
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    with suppress(asyncio.CancelledError):
        await task


async def _serve(options: Options) -> None:
    """Everything between the flags and the end."""
    async with AsyncExitStack() as cleanup:
        external, public_ip = await parts.addresses(options)
        ready_file = ReadyFile(parts.ready_path(options))
        cleanup.callback(ready_file.close)
        registry = parts.registry(options)
        cleanup.push_async_callback(registry.close)
        holder = parts.holder(options, public_ip)
        terms = Terms(options.subnet_lease_ttl, options.subnet_lease_renew_margin)
        manager = SubnetManager(registry, BootClock(), random.Random(), holder, terms)  # noqa: S311 - nothing secret

        def accept(config: NetworkConfig) -> tuple[NetworkConfig, Backend]:
            return config, backends.create(config, external, options)

        systemd.notify("STATUS=Waiting for the network config in etcd")
        config, backend = await manager.read_config(accept)
        cleanup.callback(backend.close)
        try:
            await _start(options, config, manager, backend, public_ip)
            service = _Service(manager, backend, external, ready_file)
            await service.run(accept)
        except LeaseLost:
            _take_subnet_file_away(options)
            raise


async def _start(
    options: Options, config: NetworkConfig, manager: SubnetManager, backend: Backend, public_ip: IPv4Address
) -> None:
    """Lease a subnet, carry packets for it, and tell Docker."""
    systemd.notify("STATUS=Waiting for a subnet lease")
    previous = env_file.previous_subnet(options.subnet_file)
    lease = await manager.acquire(config, backend.lease_attrs(public_ip), previous)
    mtu = await backend.start(lease)
    if options.ip_masq:
        await iptables.set_up_masquerade(config.network)
    env_file.write(options.subnet_file, env_file.render(config.network, lease.subnet, mtu, options.ip_masq))


def _take_subnet_file_away(options: Options) -> None:
    try:
        env_file.remove(options.subnet_file)
    except HostError as error:
        log.warning("%s", error)


class _Service:
    """A started host: what goes on until something fails for good."""

    def __init__(
        self, manager: SubnetManager, backend: Backend, external: ExternalInterface, ready_file: ReadyFile
    ) -> None:
        self._manager = manager
        self._backend = backend
        self._external = interface.Watch(external, BootClock().now)
        self._ready_file = ready_file
        self._guard = Guard(self._check, self._tell_state)

    async def run(self, accept: Callable[[NetworkConfig], object]) -> None:
        """Carry packets, keep the lease, follow the others, and look after the device."""
        systemd.notify("READY=1", self._status())
        self._ready_file.set(True)
        # A full collection takes longer than the TUN's queue lasts, so what start-up made is set aside.
        gc.collect()
        gc.freeze()
        gc.disable()
        log.info("Watching for new subnet leases")
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._backend.run())
                tasks.create_task(self._guard.run())
                tasks.create_task(self._manager.keep_lease())
                tasks.create_task(self._manager.watch(self._apply))
                tasks.create_task(self._manager.watch_config(accept))
                tasks.create_task(self._report_status())
                tasks.create_task(self._show_signs_of_life())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures

    def _apply(self, events: Sequence[LeaseEvent]) -> None:
        self._backend.apply(events)
        self._tell_state()

    async def _check(self, netlink: Netlink) -> list[str]:
        before = self._external.trouble
        await self._external.check(netlink)
        if self._external.trouble != before:
            self._tell_state()
        return await self._backend.repair(netlink)

    def _tell_state(self) -> None:
        systemd.notify(self._status())
        self._ready_file.set(not self._trouble())

    def _trouble(self) -> str:
        """Why we are not ready, if we are not."""
        return self._guard.trouble or self._external.trouble

    def _status(self) -> str:
        seconds = self._manager.seconds_left()
        time_left = "reserved" if seconds is None else f"{timedelta(seconds=round(seconds))} left"
        words = [f"subnet {self._manager.own.subnet} ({time_left})"]
        if self._trouble():
            words.append(f"not ready: {self._trouble()}")
        if self._guard.repairs:
            words.append(f"repairs: {self._guard.repairs}")
        return f"STATUS={', '.join([*words, self._backend.describe()])}"

    async def _report_status(self) -> None:
        """The lease's time goes by even when nothing happens; and so little is left to collect that it takes none."""
        while True:
            await asyncio.sleep(_STATUS_SECONDS)
            self._tell_state()
            gc.collect()

    async def _show_signs_of_life(self) -> None:
        """To systemd, for as long as packets and control go on."""
        allowed = systemd.watchdog_seconds()
        while allowed:
            if self._manager.makes_progress() and not self._guard.trouble:  # what a new start could help against
                systemd.notify("WATCHDOG=1")
            await asyncio.sleep(allowed / _SIGNS_OF_LIFE)
