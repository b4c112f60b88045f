"""What is left when a connection to the kernel cannot be opened."""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import suppress
from pathlib import Path

import pytest

from flannelpy.errors import HostError
from flannelpy.linux.netlink import connection, iproute
from flannelpy.linux.netlink.client import Netlink
from flannelpy.rtnetlink.links import Link


def open_files() -> list[Path]:
    return sorted(Path("/proc/self/fd").iterdir())


async def ask_pyroute2(netlink: Netlink) -> None:
    with suppress(HostError):  # only root may remove interfaces, also one that does not exist
        await netlink.remove_link(Link(9_999_999, "gone", 1500))


def refuse(*_: object) -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_a_connection_that_cannot_be_opened_leaves_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        before = open_files()
        monkeypatch.setattr(connection, "RtnetlinkSocket", refuse)
        with pytest.raises(HostError) as caught:
            await Netlink().__aenter__()
        assert str(caught.value) == "cannot open a netlink socket: Too many open files"
        assert open_files() == before

    asyncio.run(scenario())


def test_the_first_request_of_pyroute2_opens_a_socket_that_goes_with_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        async with Netlink() as netlink:  # imports what stays open
            await ask_pyroute2(netlink)
        before = open_files()
        async with Netlink() as netlink:
            with monkeypatch.context() as failing:
                failing.setattr(iproute, "AsyncIPRoute", refuse)
                with pytest.raises(HostError) as caught:
                    await netlink.remove_link(Link(1, "gone", 1500))
            assert str(caught.value) == "cannot open a netlink socket: Too many open files"
            opened = open_files()
            for _ in range(2):
                await ask_pyroute2(netlink)
                assert len(open_files()) > len(opened)
        assert open_files() == before

    asyncio.run(scenario())
