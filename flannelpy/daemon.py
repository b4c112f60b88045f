"""The composition root: builds everything, start and stop order, signals, readiness.

Start: external interface, network config, lease, socket and device, packets flow, masquerading, subnet file, READY.
Stop: packets cease, device and route go with it; lease and subnet file stay, so a restart changes nothing for Docker.
Counterpart: main.go, network/network.go.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import signal
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from typing import Any

from flannelpy import logs
from flannelpy.backend import base as backends
from flannelpy.backend.base import Backend
from flannelpy.errors import FlannelError
from flannelpy.linux import identity, interface, iptables, packet_loop, systemd
from flannelpy.linux.clock import BootClock
from flannelpy.linux.netlink import Netlink
from flannelpy.options import Options
from flannelpy.registry.base import Registry
from flannelpy.registry.etcd_v2 import EtcdV2Registry
from flannelpy.subnet import env_file
from flannelpy.subnet.lease_table import LeaseEvent
from flannelpy.subnet.manager import SubnetManager
from flannelpy.subnet.renewal import Holder, Terms

log = logging.getLogger(__name__)

_STATUS_SECONDS = 60


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
        async with Netlink() as netlink:
            external = await interface.find(netlink, options.iface)
        log.info("Using %s as external interface", external.address)
        public_ip = options.public_ip or external.address
        log.info("Using %s as external endpoint", public_ip)

        holder = Holder(public_ip, options.host_id or identity.host_id())
        terms = Terms(options.subnet_lease_ttl, options.subnet_lease_renew_margin)
        registry = _registry(options)
        cleanup.push_async_callback(registry.close)
        manager = SubnetManager(registry, BootClock(), random.Random(), holder, terms)  # noqa: S311 - nothing secret

        systemd.notify("STATUS=Waiting for the network config in etcd")
        config, backend = await manager.read_config(
            lambda config: (config, backends.create(config, external, options.offload))
        )
        cleanup.callback(backend.close)
        systemd.notify("STATUS=Waiting for a subnet lease")
        previous = env_file.previous_subnet(options.subnet_file)
        lease = await manager.acquire(config, backend.lease_attrs(public_ip), previous)
        mtu = await backend.start(lease)
        if options.ip_masq:
            await iptables.set_up_masquerade(config.network)
        env_file.write(options.subnet_file, env_file.render(config.network, lease.subnet, mtu, options.ip_masq))
        systemd.notify("READY=1", _status(manager, backend))
        await _keep_going(manager, backend)


async def _keep_going(manager: SubnetManager, backend: Backend) -> None:
    """Carry packets, keep the lease and follow the others until something fails for good."""

    def apply(events: Sequence[LeaseEvent]) -> None:
        backend.apply(events)
        systemd.notify(_status(manager, backend))

    # A full collection takes longer than the TUN's queue lasts, so what start-up made is set aside.
    gc.collect()
    gc.freeze()
    gc.disable()
    log.info("Watching for new subnet leases")
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(backend.run())
            tasks.create_task(manager.keep_lease())
            tasks.create_task(manager.watch(apply))
            tasks.create_task(_report_status(manager, backend))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures


async def _report_status(manager: SubnetManager, backend: Backend) -> None:
    """The lease's time goes by even when nothing happens; and so little is left to collect that it takes no time."""
    while True:
        await asyncio.sleep(_STATUS_SECONDS)
        systemd.notify(_status(manager, backend))
        gc.collect()


def _status(manager: SubnetManager, backend: Backend) -> str:
    seconds = manager.seconds_left()
    time_left = "reserved" if seconds is None else f"{timedelta(seconds=round(seconds))} left"
    return f"STATUS=subnet {manager.own.subnet} ({time_left}), {backend.describe()}"


def _registry(options: Options) -> Registry:
    return EtcdV2Registry(
        options.etcd_endpoints,
        options.etcd_prefix,
        keyfile=options.etcd_keyfile,
        certfile=options.etcd_certfile,
        cafile=options.etcd_cafile,
        username=options.etcd_username,
        password=options.etcd_password,
    )
