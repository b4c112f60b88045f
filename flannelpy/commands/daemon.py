"""The composition root: builds everything, start and stop order, signals, readiness.

Start: external interface, then each network (network.py), READY.  Stop: all of it at once.
If the only network fails, the daemon ends.  If one of several networks fails, with whatever error, the daemon starts it
again and leaves the others alone.
Counterpart: main.go.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, Never

from flannelpy import logs
from flannelpy.errors import AlreadyRunning, ExternalAddressChanged, FlannelError, UsageError, one_line
from flannelpy.host import external_endpoint
from flannelpy.host.resources import Host
from flannelpy.linux import memory, packet_loop, systemd
from flannelpy.network import Network
from flannelpy.options import Options
from flannelpy.tasks import run_together

log = logging.getLogger(__name__)

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# nohup, and a shell without job control, have commands ignore these; that wish counts.
_MAY_BE_IGNORED = (signal.SIGINT, signal.SIGHUP)
# How often young objects are collected, if there are so many of them.
_YOUNG_SECONDS = 0.2
_FEW_YOUNG = 2000
# Collecting so many takes 2 ms; more are collected after a longer time.
_MANY_YOUNG = 20_000
_MANY_YOUNG_SECONDS = 5.0
_STATUS_SECONDS = 60
# Signs of life per time that the watchdog allows.
_SIGNS_OF_LIFE = 3
# One of several networks that has failed is started again after this time.
_RESTART_SECONDS = 10.0
# For so long the first network that is up waits for the others.
_READY_PATIENCE = 10.0


def run(options: Options) -> int:
    """The whole life of the daemon; its exit code."""
    logs.configure(options.verbosity)
    memory.keep_small()
    try:
        packet_loop.run(_until_signalled(_serve(options)))
    except Exception as error:
        _log_failure(one_line(error), error)
        return error.exit_code if isinstance(error, FlannelError) else FlannelError.exit_code
    return 0


def _log_failure(text: str, error: Exception) -> None:
    """One line, and with -v=1 the traceback of an error that is not one of ours."""
    log.error("%s", text)
    if not isinstance(error, FlannelError):
        log.debug("Traceback of the error:", exc_info=error)


async def _until_signalled(work: Coroutine[Any, Any, None]) -> None:
    """Run ``work`` until it fails or SIGINT, SIGTERM or SIGHUP comes; a second SIGINT or SIGTERM kills at once.

    A terminal that is closed may send SIGHUP twice, so the second one does nothing.
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
    """Everything between the flags and the end."""
    external, public_ip = await external_endpoint.choose(options)
    names = options.networks or ("",)
    host = Host(external, public_ip, options.iptables_resync)
    speaker = _Speaker()
    networks = [Network(name, options, host, speaker.tell) for name in names]
    speaker.networks = networks
    await run_together(
        *(_keep_up(network) if options.networks else network.run() for network in networks),
        host.firewall.run(),
        _report_status(speaker),
        _collect_young(),
        _show_signs_of_life(networks),
    )


async def _keep_up(network: Network) -> Never:
    """Start it again whenever it fails, unless the host is not the one any more that all were started on."""
    while True:
        try:
            await network.run()
        except (UsageError, ExternalAddressChanged, AlreadyRunning):
            raise
        except Exception as error:
            logs.network.set(network.name)
            _log_failure(f"{one_line(error)}; trying again in {_RESTART_SECONDS:.0f} s", error)
            network.failed(one_line(error))
            await asyncio.sleep(_RESTART_SECONDS)


class _Speaker:
    """Tells systemd how the networks are.  Ready is who has all of them; or some, when the others do not come."""

    def __init__(self) -> None:
        self.networks: Sequence[Network] = ()
        self._is_ready = False
        self._patience: asyncio.TimerHandle | None = None

    def tell(self) -> None:
        """Something is no longer as it was told."""
        are_up = [network.is_up for network in self.networks]
        if self._is_ready or not any(are_up):
            systemd.notify(self._status())
        elif all(are_up):
            self._tell_ready()
        elif self._patience is None:
            self._patience = asyncio.get_running_loop().call_later(_READY_PATIENCE, self._end_patience)

    def _end_patience(self) -> None:
        self._patience = None
        if not self._is_ready and any(network.is_up for network in self.networks):
            self._tell_ready()

    def _tell_ready(self) -> None:
        self._is_ready = True
        systemd.notify("READY=1", self._status())
        # A full collection takes longer than a TUN's queue lasts, so what start-up made is set aside.
        gc.collect()
        gc.freeze()
        gc.disable()

    def _status(self) -> str:
        told = (f"{network.name}: {network.status()}".removeprefix(": ") for network in self.networks)
        return f"STATUS={'; '.join(told)}"


async def _report_status(speaker: _Speaker) -> Never:
    """A lease's time goes by even when nothing happens; and so little is left to collect that it takes none."""
    while True:
        await asyncio.sleep(_STATUS_SECONDS)
        speaker.tell()
        gc.collect()


async def _collect_young() -> Never:
    """Messages of pyroute2 refer to each other: while leases change without end, they take megabytes in a minute."""
    loop = asyncio.get_running_loop()
    collected_at = loop.time()
    while True:
        await asyncio.sleep(_YOUNG_SECONDS)
        count, now = gc.get_count()[0], loop.time()
        if count > _FEW_YOUNG and (count < _MANY_YOUNG or now - collected_at > _MANY_YOUNG_SECONDS):
            gc.collect(0)
            collected_at = now


async def _show_signs_of_life(networks: Sequence[Network]) -> None:
    """To systemd, for as long as packets and control go on."""
    allowed = systemd.watchdog_seconds()
    while allowed:
        if any(network.makes_progress() for network in networks):  # one's trouble is not the others'
            systemd.notify("WATCHDOG=1")
        await asyncio.sleep(allowed / _SIGNS_OF_LIFE)
