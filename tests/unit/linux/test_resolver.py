"""Names to addresses, in a bounded time."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from ipaddress import IPv4Address

import pytest

from flannelpy.linux.resolver import resolve


def look_up(name: str, *_: object) -> list[tuple[object, ...]]:
    if name == "slow":
        time.sleep(1)
    if name == "unknown":
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    if name == "odd":
        raise UnicodeError("label too long")
    return [(socket.AF_INET, None, None, "", (address, 0)) for address in ("10.0.0.1", "10.0.0.2", "10.0.0.1")]


def test_each_name_has_its_addresses_and_one_that_is_unknown_or_slow_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    began = time.monotonic()
    found = asyncio.run(resolve(["etcd", "slow", "unknown", "odd"], 0.2))
    assert time.monotonic() - began < 0.9
    both = frozenset([IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")])
    assert found == {"etcd": both, "slow": frozenset(), "unknown": frozenset(), "odd": frozenset()}
    for thread in threading.enumerate():
        assert thread.daemon or thread is threading.main_thread()
        if thread.name == "resolver":
            thread.join(5)  # it finds the loop closed


def test_an_address_is_itself_and_one_of_ipv6_is_none() -> None:
    found = asyncio.run(resolve(["172.17.8.1", "[fd00::1]"], 5))
    assert found == {"172.17.8.1": frozenset([IPv4Address("172.17.8.1")]), "[fd00::1]": frozenset()}
    assert asyncio.run(resolve([], 5)) == {}
