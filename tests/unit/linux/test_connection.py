"""What is left when a connection to the kernel cannot be opened."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from flannelpy.errors import HostError
from flannelpy.linux.netlink import connection
from flannelpy.linux.netlink.client import Netlink


def open_files() -> list[Path]:
    return sorted(Path("/proc/self/fd").iterdir())


def test_a_connection_that_cannot_be_opened_leaves_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def scenario() -> None:
        async with Netlink():  # imports what stays open
            pass
        before = open_files()
        monkeypatch.setattr(connection, "RtnetlinkSocket", refuse)
        with pytest.raises(HostError) as caught:
            await Netlink().__aenter__()
        assert str(caught.value) == "cannot open a netlink socket: Too many open files"
        assert open_files() == before

    asyncio.run(scenario())
