"""What etcd and the swarm use between two moments."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import time
from typing import TYPE_CHECKING, NamedTuple, Self

from lab.etcd_metrics import EtcdWork

if TYPE_CHECKING:
    from lab.etcd_server import EtcdServer

# Seconds between two looks at the connections: what a connection carries after the last look before its end is lost.
_LOOK_SECONDS = 5.0


class Usage(NamedTuple):
    """Resources used since a start, or between two moments; ``seconds`` is elapsed time, the others are processor time.

    ``requests`` and ``grpc_bytes`` are etcd's own counts.
    """

    seconds: float
    own_cpu: float
    etcd_cpu: float
    requests: float
    grpc_bytes: float

    @classmethod
    def until_now(cls, etcd: EtcdServer) -> Self:
        """Return what has been used so far."""
        work = EtcdWork.of(etcd.metrics())
        return cls(time.monotonic(), time.process_time(), work.cpu_seconds, work.requests, work.grpc_bytes)

    def since(self, start: Usage) -> Usage:
        """Return the difference to an earlier moment."""
        return Usage(*(end - begin for begin, end in zip(start, self, strict=True)))


class Traffic:
    """The bytes of TCP payload between this process and etcd, both ways, while the context lasts."""

    def __init__(self, etcd: EtcdServer) -> None:
        self._port = etcd.url.rpartition(":")[2]
        self._first: dict[str, int] = {}
        self._last: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        self._first = await self._look()
        self._looks = asyncio.create_task(self._keep_looking())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._looks.cancel()
        self._last |= await self._look()

    @property
    def bytes(self) -> int:
        """The bytes so far."""
        return sum(count - self._first.get(local, 0) for local, count in self._last.items())

    async def _keep_looking(self) -> None:
        while True:
            self._last |= await self._look()
            await asyncio.sleep(_LOOK_SECONDS)

    async def _look(self) -> dict[str, int]:
        argv = ["ss", "-Htinp", "state", "established", "dport", "=", f":{self._port}"]
        done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, check=True)
        return connection_bytes(done.stdout, os.getpid())


def connection_bytes(listing: str, pid: int) -> dict[str, int]:
    """Return the bytes that each connection of ``pid`` has carried, by its local address, from a listing of ``ss``."""
    found = {}
    for entry in re.split(r"\n(?=\S)", listing.strip()):
        if f"pid={pid}," in entry:
            local = entry.split()[2]
            found[local] = sum(map(int, re.findall(r"\bbytes_(?:sent|received):(\d+)", entry)))
    return found
