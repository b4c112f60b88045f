"""A kernel's table of what leads to other hosts, without a kernel."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterable, Sequence
from ipaddress import IPv4Address
from typing import Self, TypeVar

from flannelpy.linux.entries import Entry, Forward, Gateway, Neighbour, Unit
from flannelpy.linux.interface import ExternalInterface
from flannelpy.linux.netlink import Address, Link, Netlink, Refusal

EXTERNAL = ExternalInterface("eth1", IPv4Address("172.17.8.101"), 1500)
ETH1, FLANNEL1 = 2, 7

Kind = TypeVar("Kind", bound=Entry)


class FakeNetlink(Netlink):
    """``changes`` is how often entries were put or removed; putting what is in ``refused`` fails by that errno."""

    def __init__(self) -> None:
        self.entries: dict[Hashable, Entry] = {}
        self.changes = 0
        self.refused: dict[Entry, int] = {}
        self.own_addresses = [Address(ETH1, EXTERNAL.address, 24), Address(3, IPv4Address("10.0.0.1"), 8)]
        self.there = {"eth1": Link(ETH1, "eth1", 1500), "flannel.1": Link(FLANNEL1, "flannel.1", 1450, "vxlan")}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def hold(self, *entries: Entry) -> None:
        """Have these from the start."""
        self.entries.update({entry.key: entry for entry in entries})

    async def settled(self, *entries: Entry) -> None:
        """Return when there are these and no others."""
        async with asyncio.timeout(5):
            while set(self.entries.values()) != set(entries):  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0)

    async def link(self, name: str) -> Link | None:
        return self.there.get(name)

    async def addresses(self) -> list[Address]:
        return self.own_addresses

    async def gateways(self) -> list[Gateway]:
        return self._of(Gateway)

    async def neighbours(self, link_index: int) -> list[Neighbour]:
        return self._of(Neighbour)

    async def forwards(self, link_index: int) -> list[Forward]:
        return self._of(Forward)

    async def put(self, units: Iterable[Unit]) -> dict[Unit, Refusal]:
        failed: dict[Unit, Refusal] = {}
        for unit in units:
            for entry in unit:
                if entry in self.refused:
                    failed.setdefault(unit, Refusal(entry, self.refused[entry]))
                else:
                    self.entries[entry.key] = entry
                    self.changes += 1
        return failed

    async def remove(self, entries: Sequence[Entry]) -> None:
        """As the kernel: a route goes if it is that very one, all else by its key."""
        for entry in entries:
            there = self.entries.get(entry.key)
            if there and (there == entry or not isinstance(entry, Gateway)):
                del self.entries[entry.key]
                self.changes += 1

    def _of(self, kind: type[Kind]) -> list[Kind]:
        return [entry for entry in self.entries.values() if isinstance(entry, kind)]
