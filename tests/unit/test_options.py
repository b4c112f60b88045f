"""The files of a daemon are found by the path of its subnet file, and that by the name of its lock file."""

from __future__ import annotations

from pathlib import Path

import pytest

from flannelpy.linux import instance_lock
from flannelpy.options import lock_path, locked_by


@pytest.mark.parametrize("name", ["subnet.env", "x", ".x", "x.lock", ".lock", "..x", "a b", "x."])
def test_a_lock_file_names_its_subnet_file(name: str, tmp_path: Path) -> None:
    subnet_file = tmp_path / name
    lock = instance_lock.InstanceLock(subnet_file)
    assert [path.name for path in tmp_path.iterdir()] == [lock_path(subnet_file).name]
    assert locked_by(lock_path(subnet_file)) == subnet_file
    lock.close()


@pytest.mark.parametrize("name", ["subnet.env", ".lock", "..lock", "...lock", "x.lock", ".x.lock2"])
def test_another_file_is_no_lock_file(name: str) -> None:
    assert locked_by(Path("/run/flannel", name)) is None
