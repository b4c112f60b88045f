"""The marks of our state in the kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flannelpy.marks import device_alias, is_device_alias


def test_the_alias_of_a_device_names_the_subnet_file() -> None:
    assert device_alias(Path("/run/flannel/subnet.env")) == "flannelpy /run/flannel/subnet.env"


@pytest.mark.parametrize(
    ("one", "another"),
    [
        ("/run/a.env", "/run/b.env"),
        ("/a" + "/long" * 100, "/b" + "/long" * 100),
        ("/run/\xfc" * 100, "/etc/\xfc" + "/run/\xfc" * 99),
        ("/run/a\n.env", "/run/a?.env"),
        (os.fsdecode(b"/run/\xff"), os.fsdecode(b"/run/\xfe")),
    ],
)
def test_two_subnet_files_never_share_an_alias_and_each_fits(one: str, another: str) -> None:
    aliases = {device_alias(Path(path)) for path in (one, another)}
    assert len(aliases) == 2
    for alias in aliases:
        assert len(alias.encode()) < 256
        assert alias.isprintable()
        assert is_device_alias(alias)


@pytest.mark.parametrize("alias", ["", "uplink", "flannelpy", "my flannelpy /run/flannel/subnet.env"])
def test_an_alias_of_another_program_is_no_mark(alias: str) -> None:
    assert not is_device_alias(alias)
