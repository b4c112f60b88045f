"""The daemon: builds all parts, starts and stops them, and handles signals.

Start: the external interface, then all networks (network.py) at once, then READY.  Stop: everything at once.
If the only network fails, the daemon exits.  If one of several networks fails, the daemon runs it again 10 s later; the
other networks are not affected.
Counterpart: main.go.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never

from flannelpy import __version__, logs
from flannelpy.backend.repair_loop import RepairLoop
from flannelpy.control.server import ControlServer
from flannelpy.errors import AlreadyRunning, ExternalAddressChanged, UsageError
from flannelpy.host import external_endpoint
from flannelpy.host.external_interface_monitor import ExternalInterfaceMonitor
from flannelpy.host.readiness import SystemdNotifier, keep_alive
from flannelpy.host.shared import Host
from flannelpy.linux import memory, packet_loop, systemd
from flannelpy.linux.netlink.client import Netlink
from flannelpy.linux.netlink.monitor import ALL_ROUTES
from flannelpy.network import Network
from flannelpy.options import Options
from flannelpy.packet import build
from flannelpy.report import DaemonReport, NetworkState
from flannelpy.serving.status_line import status_line
from flannelpy.tasks import run_together

if TYPE_CHECKING:
    from flannelpy.web.process import HttpProcess

log = logging.getLogger(__name__)

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# nohup, and a shell without job control, start commands with these signals ignored; flannelpy leaves that so.
_MAY_BE_IGNORED = (signal.SIGINT, signal.SIGHUP)
# The period of collecting young objects, and how many make a collection worth its time.
_YOUNG_SECONDS = 0.2
_FEW_YOUNG = 2000
# Collecting this many takes 2 ms; a collection of more waits for the longer period.
_MANY_YOUNG = 20_000
_MANY_YOUNG_SECONDS = 5.0
_STATUS_SECONDS = 60
# The pause before a failed network, one of several, runs again.
_RESTART_SECONDS = 10.0


def run(options: Options) -> int:
    """Run the daemon until a signal or an error ends it; return the exit code."""
    logs.configure(options.verbosity)
    memory.keep_small()
    _set_modules_aside()
    try:
        packet_loop.run(_until_signalled(_serve(options)))
    except Exception as error:
        return logs.log_error(log, error)
    return 0


async def _until_signalled(work: Coroutine[Any, Any, None]) -> None:
    """Run ``work`` until it fails, or until SIGINT, SIGTERM or SIGHUP arrives.

    A second SIGINT or SIGTERM kills the process at once.  A second SIGHUP does nothing, because a terminal may send two
    when it is closed.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(work)
    numbers = [number for number in _STOP_SIGNALS if not _stays_ignored(number)]

    def stop() -> None:
        log.info("Exiting...")
        systemd.notify("STOPPING=1")
        for number in numbers:
            loop.remove_signal_handler(number)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        task.cancel()

    log.info("Installing signal handlers")
    for number in numbers:
        loop.add_signal_handler(number, stop)
    with suppress(asyncio.CancelledError):
        await task


def _stays_ignored(number: signal.Signals) -> bool:
    return number in _MAY_BE_IGNORED and signal.getsignal(number) is signal.SIG_IGN


async def _serve(options: Options) -> None:
    """Run all networks, and report their state to systemd."""
    external, public_ip = await external_endpoint.choose(options)
    names = options.networks or ("",)
    host = Host(external, public_ip, options.iptables_resync)
    networks: list[Network] = []
    report = partial(_report, networks, time.time())
    notifier = SystemdNotifier(report, status_line, _set_start_up_aside)
    control = ControlServer(networks, report, logs.change_level)
    http = _http_process(options, control) if options.healthz_port else None
    monitor = external_endpoint.watch(options, external)
    underlay = _underlay_loop(monitor, networks)
    changed = asyncio.Event()

    def on_change() -> None:
        notifier.update()
        changed.set()

    networks += [Network(name, options, host, monitor, on_change) for name in names]
    await run_together(
        *(_keep_up(network, on_change) if options.networks else network.run() for network in networks),
        underlay.run(),
        host.firewall.run(),
        _answer_clients(control, options.control_socket, networks, changed),
        *([http.run()] if http else []),
        _report_status(notifier),
        _collect_young(),
        keep_alive(lambda: underlay.is_live() and _is_live(networks)),
    )


def _http_process(options: Options, control: ControlServer) -> HttpProcess:
    """Return the HTTP process, whose ports are open, so that one that is taken ends the start.  Raises HostError."""
    from flannelpy.web import listeners
    from flannelpy.web.process import HttpProcess

    return HttpProcess(options, listeners.listen(options), control.answer)


def _report(networks: Sequence[Network], started_at: float) -> DaemonReport:
    reports = tuple(network.report() for network in networks)
    return DaemonReport(reports, __version__, os.getpid(), started_at, build(), time.time())


async def _answer_clients(
    control: ControlServer, path: Path, networks: Sequence[Network], changed: asyncio.Event
) -> None:
    """Answer the clients of the control socket, once each network has its instance lock, or has failed to get it.

    From then on no other daemon with these subnet files has the socket.  ``changed``: set when a network has changed.
    """
    is_locked = False
    while not is_locked:
        await changed.wait()
        changed.clear()
        is_locked = all(network.report().state is not NetworkState.STARTING for network in networks)
    await control.run(path)


def _is_live(networks: Sequence[Network]) -> bool:
    """Return whether any network is live: a network that hangs must not stop the others."""
    return any(network.is_live() for network in networks)


async def _keep_up(network: Network, on_failure: Callable[[], None]) -> Never:
    """Run the network again whenever it fails; raise errors that concern all networks of the host.

    ``on_failure`` is called after the network has failed.
    """
    while True:
        try:
            await network.run()
        except (UsageError, ExternalAddressChanged, AlreadyRunning):
            raise
        except Exception as error:
            logs.network.set(network.name)
            logs.log_error(log, error, f"; trying again in {_RESTART_SECONDS:.0f} s")
            on_failure()
            await asyncio.sleep(_RESTART_SECONDS)


def _underlay_loop(monitor: ExternalInterfaceMonitor, networks: Sequence[Network]) -> RepairLoop:
    """Return the loop that checks the external interface at every change, and has each network follow.

    Its ``run`` raises ExternalAddressChanged.
    """

    async def check(netlink: Netlink) -> list[str]:
        try:
            await monitor.check(netlink)
        finally:
            for network in networks:
                network.underlay_changed()
        return []

    return RepairLoop(check, ALL_ROUTES, lambda: None, monitor.due)


def _set_modules_aside() -> None:
    """Keep what was imported, which stays, out of garbage collection, and leave collections to the tasks below."""
    gc.disable()
    gc.freeze()


def _set_start_up_aside() -> None:
    """Keep the objects of the start out of garbage collection: a full one takes longer than a TUN's queue lasts."""
    gc.collect()
    gc.freeze()


async def _report_status(notifier: SystemdNotifier) -> Never:
    """Update the status, whose time left shrinks, and collect garbage, of which there is too little to take time."""
    while True:
        await asyncio.sleep(_STATUS_SECONDS)
        notifier.update()
        gc.collect()


async def _collect_young() -> Never:
    """Collect garbage of the recent past: while leases change, messages of pyroute2 leave megabytes of it a minute."""
    loop = asyncio.get_running_loop()
    collected_at = loop.time()
    while True:
        await asyncio.sleep(_YOUNG_SECONDS)
        count, now = gc.get_count()[0], loop.time()
        if count > _FEW_YOUNG and (count < _MANY_YOUNG or now - collected_at > _MANY_YOUNG_SECONDS):
            gc.collect(0)
            collected_at = now
