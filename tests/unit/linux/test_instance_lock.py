"""The lock beside a subnet file: who gets it, what may be at its path, and the record of the last run."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from flannelpy.errors import AlreadyRunning, HostError
from flannelpy.linux.instance_lock import Holder, InstanceLock, Run, holder, look
from flannelpy.options import lock_path

RUN = Run((IPv4Network("11.0.0.0/16"), IPv4Network("10.7.0.0/20")), "vxlan", "flannel.1")
OTHER_USER = 61999

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files and sockets to another user")


@pytest.fixture
def subnet_file(tmp_path: Path) -> Path:
    return tmp_path / "flannel/subnet.env"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_only_the_owner_may_use_the_file_with_any_umask(subnet_file: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        lock = InstanceLock(subnet_file)
        status = lock_path(subnet_file).stat()
    finally:
        os.umask(before)
    assert stat.S_IMODE(status.st_mode) == 0o600
    lock.close()
    assert lock_path(subnet_file).stat().st_ino == status.st_ino


def test_a_second_lock_is_rejected_until_the_first_ends(subnet_file: Path) -> None:
    lock = InstanceLock(subnet_file)
    with pytest.raises(
        AlreadyRunning, match=f"^a flannelpy runs here with the subnet file {subnet_file}: stop it first$"
    ):
        InstanceLock(subnet_file)
    lock.close()
    InstanceLock(subnet_file).close()


def test_the_lock_ends_with_its_process(subnet_file: Path) -> None:
    code = f"""import sys, time, pathlib
from flannelpy.linux.instance_lock import InstanceLock
lock = InstanceLock(pathlib.Path({str(subnet_file)!r}))
print("locked", flush=True)
time.sleep(60)"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(AlreadyRunning):
            InstanceLock(subnet_file)
        process.send_signal(signal.SIGKILL)
    InstanceLock(subnet_file).close()


@pytest.mark.parametrize("names", [("a.env", "b.env"), ("subnet.env", "subnet.env.lock"), ("x", ".x"), ("x", "x.x")])
def test_each_subnet_file_has_its_own_lock(tmp_path: Path, names: tuple[str, str]) -> None:
    locks = [InstanceLock(tmp_path / name) for name in names]
    for lock in locks:
        lock.close()


def _symlink(path: Path) -> None:
    (path.parent / "victim").write_text("precious")
    path.symlink_to("victim")


def _hard_link(path: Path) -> None:
    (path.parent / "victim").write_text("precious")
    os.link(path.parent / "victim", path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


@pytest.mark.parametrize(
    ("put", "cause"),
    [
        (_symlink, "it is a symbolic link: remove it"),
        (lambda path: path.symlink_to("nowhere"), "it is a symbolic link: remove it"),
        (lambda path: path.symlink_to("."), "it is a symbolic link: remove it"),
        (Path.mkdir, r"Is a directory \(EISDIR\)"),
        (os.mkfifo, "is not a regular file with one name"),
        (_socket, "ENXIO"),
        (_hard_link, "is not a regular file with one name"),
    ],
    ids=["symlink", "dangling symlink", "symlink to a directory", "directory", "FIFO", "socket", "hard link"],
)
def test_anything_but_a_file_of_ours_is_rejected_at_once(
    subnet_file: Path, put: Callable[[Path], None], cause: str
) -> None:
    subnet_file.parent.mkdir()
    put(lock_path(subnet_file))
    with pytest.raises(HostError, match=rf"lock file {lock_path(subnet_file)}.*{cause}"):
        InstanceLock(subnet_file)
    victim = subnet_file.parent / "victim"
    assert not victim.exists() or victim.read_text() == "precious"
    assert not (subnet_file.parent / "nowhere").exists()


@needs_root
def test_another_users_file_is_rejected_unless_they_own_the_directory(subnet_file: Path) -> None:
    """As -cleanup of root after a daemon of the user that systemd gives the directory to."""
    subnet_file.parent.mkdir()
    path = lock_path(subnet_file)
    path.touch()
    os.chown(path, OTHER_USER, OTHER_USER)
    with pytest.raises(HostError, match=f"^the lock file {path} belongs to the user with ID {OTHER_USER}; remove it$"):
        InstanceLock(subnet_file)
    os.chown(path.parent, OTHER_USER, OTHER_USER)
    InstanceLock(subnet_file).close()


def test_the_mode_of_a_readable_file_is_restricted(subnet_file: Path) -> None:
    subnet_file.parent.mkdir()
    lock_path(subnet_file).touch(0o644)
    InstanceLock(subnet_file).close()
    assert stat.S_IMODE(lock_path(subnet_file).stat().st_mode) == 0o600


def test_a_name_that_is_too_long_for_its_lock_file_is_rejected(tmp_path: Path) -> None:
    subnet_file = tmp_path / ("n" * 252)
    with pytest.raises(HostError, match=r"^cannot open the lock file .*: File name too long \(ENAMETOOLONG\)"):
        InstanceLock(subnet_file)


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    subnet_file = tmp_path / "file/subnet.env"
    expected = rf"^cannot write subnet file {subnet_file}: File exists \(EEXIST\); see -subnet-file$"
    with pytest.raises(HostError, match=expected):
        InstanceLock(subnet_file)


# The record


def test_the_next_run_reads_what_the_last_one_wrote(subnet_file: Path) -> None:
    lock = InstanceLock(subnet_file)
    assert lock.read() is None
    short = Run(RUN.networks[:1], "udp", "")
    for run in (RUN, short, RUN):
        lock.write(run)
        assert lock.read() == run
    lock.close()
    lock = InstanceLock(subnet_file)
    assert lock.read() == RUN
    lock.write(None)
    assert lock.read() is None
    lock.close()


def test_a_crash_between_writing_and_truncating_loses_nothing(
    subnet_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = InstanceLock(subnet_file)
    lock.write(RUN)
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", lambda *_: None)
        lock.write(short := Run(RUN.networks[:1], "udp", ""))
    assert lock.read() == short
    lock.close()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"\xff\xfe",
        b"[]",
        b"7",
        b"null",
        b"[" * 60000,
        b'{"networks":["11.0.0.0/16"]',
        b'{"networks":["11.0.0.0/33"],"backend":"udp","device":""}',
        b'{"networks":["11.0.0.1/16"],"backend":"udp","device":""}',
        b'{"networks":"11.0.0.0/16","backend":"udp","device":""}',
        b'{"networks":[],"backend":"udp","device":""}',
        b'{"networks":["11.0.0.0/16"],"backend":7,"device":""}',
        b'{"networks":["11.0.0.0/16"],"device":""}',
        b'{"networks":["11.0.0.0/16"],"backend":"udp","device":"' + b"x" * 100_000 + b'"}',
    ],
)
def test_an_invalid_record_counts_as_none(subnet_file: Path, content: bytes) -> None:
    subnet_file.parent.mkdir()
    lock_path(subnet_file).write_bytes(content)
    lock = InstanceLock(subnet_file)
    assert lock.read() is None
    lock.write(RUN)
    assert lock.read() == RUN
    lock.close()


# Versions from before the lock file


def _old_version(subnet_file: Path, uid: int) -> socket.socket:
    """The socket that such a daemon binds."""
    os.setresuid(-1, uid, -1)
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    finally:
        os.setresuid(-1, 0, -1)
    sock.bind(b"\0flannelpy " + os.fsencode(subnet_file.resolve())[-90:])
    return sock


@needs_root
@pytest.mark.parametrize("name", ["subnet.env", "a/" * 60 + "subnet.env"], ids=["short", "long"])
def test_an_old_version_of_ours_that_runs_is_seen(tmp_path: Path, name: str) -> None:
    subnet_file = tmp_path / name
    with _old_version(subnet_file, 0):
        with pytest.raises(AlreadyRunning):
            InstanceLock(subnet_file)
        InstanceLock(tmp_path / "another.env").close()
    InstanceLock(subnet_file).close()


@needs_root
def test_another_users_socket_of_that_name_is_ignored(subnet_file: Path) -> None:
    with _old_version(subnet_file, OTHER_USER):
        InstanceLock(subnet_file).close()


def test_a_lock_of_another_process_counts(subnet_file: Path) -> None:
    subnet_file.parent.mkdir()
    with lock_path(subnet_file).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(AlreadyRunning):
            InstanceLock(subnet_file)


def test_a_look_at_the_lock_neither_takes_nor_creates_it(tmp_path: Path) -> None:
    file = tmp_path / "subnet.env"
    assert look(file) == Holder(is_running=False, run=None)
    assert not list(tmp_path.iterdir())
    lock = InstanceLock(file)
    lock.write(RUN)
    assert look(file) == Holder(is_running=True, run=RUN)
    assert holder(lock_path(file)) == os.getpid()
    lock.close()
    assert holder(lock_path(file)) is None
    assert look(file) == Holder(is_running=False, run=RUN)
    InstanceLock(file).close()


def test_a_lock_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / ".subnet.env.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HostError, match=r"cannot read the lock file .*/\.subnet\.env\.lock"):
        look(tmp_path / "subnet.env")
