"""-cleanup, or cleanup: remove what an earlier run left on this host; with -release, also give the lease back.

Each thing that is removed is logged.  A thing that does not exist is no error, so a second -cleanup changes nothing.
Counterpart: none; flanneld leaves its devices, routes, rules and files behind.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from ipaddress import IPv4Network
from pathlib import Path

from flannelpy import logs
from flannelpy.backend.left_programs import remove_left_programs
from flannelpy.backend.leftovers import marked, unmarked_leftovers, withdraw
from flannelpy.control import listener
from flannelpy.errors import CompareFailed, HostError, KeyNotFound
from flannelpy.host import external_endpoint, firewall_tables, ownership, subnet_file
from flannelpy.leasing.host_registry import connect_host
from flannelpy.linux import identity
from flannelpy.linux.instance_lock import InstanceLock, Run
from flannelpy.linux.netlink.client import Netlink
from flannelpy.options import Options
from flannelpy.registry.base import Registry
from flannelpy.subnet.lease import HostIdentity, Lease, format_key, well_formed

log = logging.getLogger(__name__)


def run(options: Options) -> int:
    """Remove devices, routes, rules and files of all networks; return the exit code."""
    logs.configure(options.verbosity)
    try:
        asyncio.run(_clean_up(options))
    except Exception as error:
        return logs.log_error(log, error)
    return 0


async def _clean_up(options: Options) -> None:
    names = options.networks or ("",)
    with ExitStack() as stopped:
        locks: list[InstanceLock] = []
        for name in names:  # first of all, because a running daemon would restore what is removed
            locks.append(InstanceLock(options.subnet_file_of(name)))
            stopped.callback(locks[-1].close)
        failures: list[HostError] = []
        for name, lock in zip(names, locks, strict=True):
            failures += await _remove_owned(options.subnet_file_of(name), options.ready_file_of(name), lock)
        _remove_socket(options.control_socket)
        if options.release:
            await _release_all(options, names)
    if failures:
        raise failures[0]


def _remove_socket(path: Path) -> None:
    """Remove the control socket of a daemon that was killed; that of another daemon, which runs, stays."""
    with suppress(HostError):
        if listener.remove_stale(path):
            log.info("Removed %s", path)


async def _release_all(options: Options, names: Sequence[str]) -> None:
    """Give back the leases of this host in all networks; the caller holds their instance locks."""
    _, public_ip = await external_endpoint.choose(options)
    host_identity = HostIdentity(public_ip, options.host_id or identity.host_id())
    for name in names:
        logs.network.set(name)
        await _release(connect_host(options, name, host_identity), host_identity)


async def _remove_owned(file: Path, ready: Path, lock: InstanceLock) -> list[HostError]:
    """Remove what the subnet file owns by its text and by the record of the last run; without both, remove nothing.

    Return why some iptables tables could not be changed: the record then keeps their networks for the next -cleanup.
    """
    scope = ownership.scope(file, lock.read())
    async with Netlink() as netlink:
        removed = await remove_left_programs(netlink, scope.alias)
        removed += await withdraw(netlink, scope) if scope.networks else []
        unmarked = await unmarked_leftovers(netlink, scope.networks)
        if not scope.networks:
            found = [*await marked(netlink), *await firewall_tables.chains()]
            log.info("Removed nothing: there is neither %s nor a record of its last run", file)
            for what in found:
                log.info("Found state marked by flannelpy: %s", what)
    failures: dict[IPv4Network, list[HostError]] = {}
    for network in sorted(scope.networks):
        removal = await firewall_tables.remove(network)
        removed += removal.removed
        if removal.failures:
            failures[network] = removal.failures
    removed += [str(path) for path in (file, ready) if subnet_file.remove(path)]
    for what in removed:
        log.info("Removed %s", what)
    for command in unmarked:
        log.warning("Kept unmarked state, since another program may have added it; to remove it: %s", command)
    lock.write(Run(tuple(failures), "", "") if failures else None)
    return [failure for each in failures.values() for failure in each]


async def _release(registry: Registry, host_identity: HostIdentity) -> None:
    """Give back the leases of this host, if no other host with its public IP holds them."""
    try:
        snapshot = await registry.snapshot()
        leases = [lease for lease in well_formed(snapshot.entries) if lease.attrs.public_ip == host_identity.public_ip]
        if not leases:
            log.info("Found no lease with the public IP %s of this host", host_identity.public_ip)
        for lease in leases:
            await _release_one(registry, lease, host_identity)
    finally:
        await registry.close()


async def _release_one(registry: Registry, lease: Lease, host_identity: HostIdentity) -> None:
    if lease.is_reservation:
        log.warning("Kept the reservation of %s: it belongs to the operator", lease.subnet)
    elif lease.attrs.host_id not in ("", host_identity.host_id):
        log.warning("Kept the lease of %s: it belongs to another host (%s)", lease.subnet, lease.attrs.host_id)
    else:
        try:
            await registry.compare_and_delete(format_key(lease.subnet), lease.version)
        except (KeyNotFound, CompareFailed):
            log.info("Released nothing: the lease of %s expired or changed meanwhile", lease.subnet)
        else:
            log.info("Released the lease of %s", lease.subnet)
