"""The errors of a TUN device that cannot be opened; tests/netns send packets through a real one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from flannelpy.errors import HostError
from flannelpy.linux import tun


@pytest.mark.parametrize("use", [tun.check_access, tun.Tun])
@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (errno.EACCES, "Permission denied; this user has no permission to read and write it"),
        (errno.EPERM, "Operation not permitted; a container or sandbox gives no permission"),
        (errno.ENOENT, "No such file or directory; is the tun module there"),
        (errno.ENODEV, "No such device; is the tun module there"),
        (errno.EMFILE, "Too many open files"),
    ],
)
def test_the_cause_of_a_failed_open_is_named(
    monkeypatch: pytest.MonkeyPatch, use: Callable[[], object], number: int, cause: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(HostError) as error:
        use()
    assert str(error.value).startswith(f"cannot open /dev/net/tun: {cause}")


def test_a_check_keeps_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tun, "_DEVICE", os.devnull)
    before = sorted(path.name for path in Path("/proc/self/fd").iterdir())
    tun.check_access()
    assert sorted(path.name for path in Path("/proc/self/fd").iterdir()) == before
