"""Finds peers that interpret Backend.Port as another port; without the probe, packets to them vanish silently.

flanneld up to v0.5.5 swaps the bytes of an explicit Port, so its device listens on 53790 where the config has 7890.
With PortSwapped, our device listens on 53790 as well; then the peers with later versions do not.
Counterpart: none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from itertools import islice
from typing import Never

from flannelpy.causes import listed
from flannelpy.datapath.vxlan_settings import Settings
from flannelpy.linux.udp_probe import PortState, probe
from flannelpy.logs import FailureLog
from flannelpy.subnet import go_json
from flannelpy.subnet.config import NetworkConfig
from flannelpy.subnet.lease import Lease

log = logging.getLogger(__name__)

# Peers that are probed at the same time, and the pause after them.
_AT_A_TIME, _PAUSE_SECONDS = 8, 1.0
# A peer may start, or be upgraded, after a probe.
_AGAIN_SECONDS = 60.0
_KEY = "PortSwapped"

#: Returns the state of a UDP port of another host, probed from an address of this host.
Probe = Callable[[IPv4Address, IPv4Address, int], Awaitable[PortState]]


class PortProbe:
    """Probes the peers in the background, and logs once which peers listen only on the other port.

    A flannelpy peer with our config has our port.  So without PortSwapped, only peers that run the original are probed:
    their leases have no HostID.
    """

    def __init__(self, source: IPv4Address, settings: Settings, config: NetworkConfig, ask: Probe = probe) -> None:
        self._source = source
        self._settings = settings
        self._config = config
        self._ask = ask
        self._is_swapped = go_json.get(config.backend.options, _KEY) is True
        self._peers: dict[IPv4Network, IPv4Address] = {}
        self._subnets: dict[IPv4Address, dict[IPv4Network, None]] = {}
        self._due: dict[IPv4Address, None] = {}
        self._wake_up = asyncio.Event()
        self._unreachable: dict[IPv4Address, None] = {}
        self._failures = FailureLog(log, "Peers that listen on another UDP port", burst=10)

    def follow(self, lease: Lease) -> None:
        """Probe the host of an added or changed lease, if it may listen on the other port."""
        self.forget(lease.subnet)
        if self._settings.other_port and (self._is_swapped or not lease.attrs.host_id):
            self._peers[lease.subnet] = lease.attrs.public_ip
            self._subnets.setdefault(lease.attrs.public_ip, {})[lease.subnet] = None
            self._due[lease.attrs.public_ip] = None
            self._wake_up.set()

    def forget(self, subnet: IPv4Network) -> None:
        """Stop probing the host of a removed lease, unless it holds another one."""
        peer = self._peers.pop(subnet, None)
        if peer:
            del self._subnets[peer][subnet]
            if not self._subnets[peer]:
                del self._subnets[peer]

    async def run(self) -> Never:
        """Probe new peers at once, and all peers every minute, also if leases change more often."""
        loop = asyncio.get_running_loop()
        again_at = loop.time() + _AGAIN_SECONDS
        while True:
            if not self._due:
                self._wake_up.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(again_at):
                        await self._wake_up.wait()
            if loop.time() >= again_at:
                again_at = loop.time() + _AGAIN_SECONDS
                self._due |= dict.fromkeys(self._subnets)
            await self._check_some()

    async def _check_some(self) -> None:
        """Probe the first of the peers that are due."""
        some = list(islice(self._due, _AT_A_TIME))
        for peer in some:
            del self._due[peer]
        await asyncio.gather(*map(self._check, some))
        self._log_unreachable()
        await asyncio.sleep(_PAUSE_SECONDS if some else 0)

    async def _check(self, peer: IPv4Address) -> None:
        ours, other = await asyncio.gather(
            *(self._ask(self._source, peer, port) for port in (self._settings.port, self._settings.other_port))
        )
        if ours is PortState.SILENT:
            self._unreachable.pop(peer, None)
        elif ours is PortState.CLOSED and other is PortState.SILENT:
            self._unreachable[peer] = None

    def _log_unreachable(self) -> None:
        """Log once the peers that packets do not reach, unless their leases were removed meanwhile."""
        self._unreachable = {peer: None for peer in self._unreachable if peer in self._subnets}
        cause = f"UDP port {self._settings.port} is closed, and {self._settings.other_port} is not"
        self._failures.note_all(dict.fromkeys(self._unreachable, cause), self._line)

    def _line(self, peers: Sequence[IPv4Address], cause: str) -> str:
        texts = [f"{peer} ({listed(list(self._subnets[peer]))})" for peer in sorted(peers)]
        subject = f"Peer {texts[0]} is" if len(texts) == 1 else f"Peers {listed(texts)} are"
        return f"{subject} unreachable: {cause}. {self._remedy()}"

    def _remedy(self) -> str:
        config = config_with(self._config, is_swapped=not self._is_swapped)
        put = f"put this config into etcd and restart flannelpy on all hosts: {config}"
        if self._is_swapped:
            return (
                "Such a peer runs flanneld v0.5.6 or later, or was not restarted since PortSwapped is set. If no host "
                f"runs flanneld up to v0.5.5 any more, {put}"
            )
        return f"flanneld up to v0.5.5 swaps the bytes of Backend.Port. To reach such a peer, {put}"


def config_with(config: NetworkConfig, *, is_swapped: bool) -> str:
    """Return the network config with PortSwapped, or without it, as one line of JSON."""
    backend = {key: value for key, value in config.backend.options.items() if key.casefold() != _KEY.casefold()}
    if is_swapped:
        backend[_KEY] = True
    return go_json.dump(
        {
            "Network": str(config.network),
            "SubnetLen": config.subnet_len,
            "SubnetMin": str(config.subnet_min),
            "SubnetMax": str(config.subnet_max),
            "Backend": backend,
        }
    )
