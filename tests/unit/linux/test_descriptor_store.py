"""Descriptors that systemd keeps: what it is sent over a real socket, and what it passes to the next process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flannelpy.linux.descriptor_store import DescriptorStore


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("FDSTORE", "1")
        yield sock


@pytest.mark.parametrize(
    ("fdstore", "notify", "expected"),
    [
        ("1", "/x", True),
        ("8", "@x", True),
        ("0", "/x", False),
        ("", "/x", False),
        ("all", "/x", False),
        ("1", "", False),
    ],
)
def test_a_store_needs_space_and_a_socket(
    monkeypatch: pytest.MonkeyPatch, fdstore: str, notify: str, expected: bool
) -> None:
    for name, value in (("FDSTORE", fdstore), ("NOTIFY_SOCKET", notify)):
        monkeypatch.delenv(name, raising=False)
        if value:
            monkeypatch.setenv(name, value)
    assert DescriptorStore().is_available is expected


def test_what_is_kept_is_sent_with_its_name_and_can_be_opened(supervisor: socket.socket) -> None:
    store = DescriptorStore()
    read, write = os.pipe()
    store.keep("flannel0", write)
    os.close(write)
    text, [kept], _, _ = socket.recv_fds(supervisor, 4096, 1)
    assert text == b"FDSTORE=1\nFDNAME=flannel0"
    opened = store.open("flannel0")
    for number, each in enumerate((kept, opened)):
        os.write(each, b"%d" % number)
        os.close(each)
    assert os.read(read, 9) == b"01"
    store.forget("flannel0")
    assert supervisor.recv(4096) == b"FDSTOREREMOVE=1\nFDNAME=flannel0"
    assert os.read(read, 9) == b""  # no writer is left
    os.close(read)
    assert not store.names()
    store.forget("flannel0")
    with pytest.raises(BlockingIOError):
        supervisor.recv(4096)


_NEXT = """
import os, sys
from flannelpy.linux.descriptor_store import DescriptorStore
if sys.argv[1] == "ours":
    os.environ["LISTEN_PID"] = str(os.getpid())
store = DescriptorStore()
print(list(store.names()), sorted(name for name in os.environ if name.startswith("LISTEN_")))
for name in store.names():
    print(os.get_inheritable(store._kept[name]), os.fstat(store.open(name)).st_ino)
"""


@pytest.mark.parametrize("whose", ["ours", "another's"])
def test_the_next_process_gets_it(tmp_path: Path, whose: str) -> None:
    file = tmp_path / "kept"
    file.touch()
    with file.open() as kept:
        env = {**os.environ, "LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "flannel0"}
        argv = ["sh", "-c", 'exec "$0" -c "$1" "$2" 3<&0', sys.executable, _NEXT, whose]
        done = subprocess.run(argv, env=env, stdin=kept, capture_output=True, text=True, check=True)
    expected = f"['flannel0'] []\nFalse {file.stat().st_ino}\n" if whose == "ours" else "[] []\n"
    assert done.stdout == expected
