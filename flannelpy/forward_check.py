"""Finds out what keeps packets between containers of different hosts from being forwarded.

Counterpart: none; the original's containers get no answer, and nothing tells why.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network

from flannelpy import logs, obstacles
from flannelpy.backend.chunks import in_chunks
from flannelpy.errors import HostError
from flannelpy.linux import ip_forward, nftables
from flannelpy.linux.nftables import BaseChain
from flannelpy.obstacles import DropSearch, Obstacle

log = logging.getLogger(__name__)

# nft is a process of its own, and rules of nftables change seldom.
_NFTABLES_SECONDS = 60.0


class SysctlCheck:
    """``obstacle``: the setting of the kernel that keeps packets of containers from being forwarded, or empty."""

    def __init__(self) -> None:
        self.obstacle = ""

    async def check(self, devices: Iterable[str]) -> None:
        """Look again at the devices by which packets of containers come in, and log a change."""
        blocked: list[str] = []
        async for chunk in in_chunks(devices):
            blocked += [device for device in chunk if not ip_forward.is_enabled(device)]
        found = obstacles.of_sysctls(blocked, is_host_forwarding=ip_forward.is_enabled(ip_forward.HOST))
        if found and found != self.obstacle:
            log.error("%s", found)
        elif self.obstacle and not found:
            log.info("The kernel forwards packets of containers again")
        self.obstacle = found


class ForwardCheck:
    """Networks are known by their names."""

    def __init__(self) -> None:
        self._found: dict[str, list[Obstacle]] = {}
        self._chains: list[BaseChain] = []
        self._listed_at: float | None = None
        self._trouble = ""

    def certain(self, name: str) -> str:
        """What certainly stops the packets of a network; empty if nothing does."""
        return next((obstacle.text for obstacle in self._found.get(name, ()) if obstacle.is_certain), "")

    def forget(self, name: str) -> None:
        """A network has ended."""
        self._found.pop(name, None)

    async def check(self, networks: Mapping[str, tuple[IPv4Network, DropSearch]]) -> None:
        """Look again; each search has been fed with the table filter."""
        chains = await self._forward_chains()
        for name, (network, search) in networks.items():
            rules = [*obstacles.of_iptables(search.found), *obstacles.of_nftables(chains, network)]
            self._report(name, rules)
            self._found[name] = rules

    async def _forward_chains(self) -> list[BaseChain]:
        now = asyncio.get_running_loop().time()
        if self._listed_at is None or now - self._listed_at >= _NFTABLES_SECONDS:
            self._listed_at = now
            try:
                self._chains = await nftables.forward_chains()
                self._trouble = ""
            except HostError as error:
                if str(error) != self._trouble:
                    log.warning("Cannot look whether nftables drops packets of containers: %s", error)
                self._trouble = str(error)
        return self._chains

    def _report(self, name: str, rules: list[Obstacle]) -> None:
        """Log what was not there at the last check."""
        token = logs.network.set(name)
        for obstacle in rules:
            if obstacle not in self._found.get(name, ()):
                log.warning("%s", obstacle.text)
        logs.network.reset(token)
