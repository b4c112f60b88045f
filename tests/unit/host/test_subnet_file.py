"""The subnet file: four lines, written as a whole, read back at the next start."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from flannelpy.errors import HostError
from flannelpy.host import subnet_file

NETWORK, SUBNET = IPv4Network("11.0.0.0/16"), IPv4Network("11.0.59.0/24")
TEXT = "FLANNEL_NETWORK=11.0.0.0/16\nFLANNEL_SUBNET=11.0.59.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"


@pytest.mark.parametrize(
    ("subnet", "mtu", "ip_masq", "expected"),
    [
        ("11.0.59.0/24", 1472, False, TEXT),
        ("11.0.59.0/24", 1472, True, TEXT.replace("false", "true")),
        ("11.0.0.16/28", 8972, False, TEXT.replace("11.0.59.1/24", "11.0.0.17/28").replace("1472", "8972")),
    ],
)
def test_four_lines_in_their_order(subnet: str, mtu: int, ip_masq: bool, expected: str) -> None:
    assert subnet_file.render(NETWORK, IPv4Network(subnet), mtu, ip_masq) == expected


def test_the_directory_is_made_and_nothing_else_is_left_in_it(tmp_path: Path) -> None:
    path = tmp_path / "run" / "flannel" / "subnet.env"
    subnet_file.write(path, TEXT)
    assert path.read_bytes() == TEXT.encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_reader_of_the_old_file_reads_the_old_text_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    subnet_file.write(path, "old\n")
    with path.open() as reader:
        subnet_file.write(path, TEXT)
        assert reader.read() == "old\n"
    assert path.read_text() == TEXT


def test_a_link_in_its_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    path, target = tmp_path / "subnet.env", tmp_path / "precious"
    target.write_text("precious\n")
    path.symlink_to(target)
    subnet_file.write(path, TEXT)
    assert (path.read_text(), target.read_text()) == (TEXT, "precious\n")


def a_file_instead_of_the_directory(path: Path) -> str:
    path.parent.write_text("")
    return "File exists (EEXIST)"


def a_file_instead_of_a_directory_above(path: Path) -> str:
    path.parent.parent.rmdir()
    path.parent.parent.write_text("")
    return "Not a directory (ENOTDIR)"


def a_directory_instead_of_the_file(path: Path) -> str:
    path.mkdir(parents=True)
    return "Is a directory (EISDIR)"


def a_directory_instead_of_the_draft(path: Path) -> str:
    (path.parent / ".subnet.env").mkdir(parents=True)
    return "Is a directory (EISDIR)"


@pytest.mark.parametrize(
    "obstacle",
    [
        a_file_instead_of_the_directory,
        a_file_instead_of_a_directory_above,
        a_directory_instead_of_the_file,
        a_directory_instead_of_the_draft,
    ],
)
def test_a_file_that_cannot_be_written_is_an_error_with_path_and_errno(
    tmp_path: Path, obstacle: Callable[[Path], str]
) -> None:
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "flannel" / "subnet.env"
    cause = obstacle(path)
    with pytest.raises(HostError) as caught:
        subnet_file.write(path, TEXT)
    assert str(caught.value) == f"cannot write subnet file {path}: {cause}; see -subnet-file"


def test_a_full_disk_leaves_the_old_file_and_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "subnet.env"
    subnet_file.write(path, "old\n")

    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HostError, match=r"No space left on device \(ENOSPC\)"):
        subnet_file.write(path, TEXT)
    assert [(file, file.read_text()) for file in tmp_path.iterdir()] == [(path, "old\n")]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (TEXT, SUBNET),
        ("FLANNEL_SUBNET=11.0.59.1/24", SUBNET),
        ("FLANNEL_MTU=1472\r\nFLANNEL_SUBNET=11.0.59.1/24\r\n", SUBNET),
        ("FLANNEL_SUBNET=11.0.59.1/24\nFLANNEL_SUBNET=11.0.60.1/24\n", SUBNET),
        ("", None),
        ("FLANNEL_MTU=1472\n", None),
        ("FLANNEL_SUBNET=\n", None),
        ("FLANNEL_SUBNET=rubbish\n", None),
        ("FLANNEL_SUBNET=11.0.59.1/99\n", None),
        ("#FLANNEL_SUBNET=11.0.59.1/24\n", None),
        ("FLANNEL_SUBNET=११.0.59.1/24\n", None),
    ],
)
def test_the_previous_subnet_is_read_from_the_file(tmp_path: Path, content: str, expected: IPv4Network | None) -> None:
    path = tmp_path / "subnet.env"
    path.write_bytes(content.encode())
    assert subnet_file.previous_subnet(path) == expected


def test_without_a_file_there_is_no_last_run(tmp_path: Path) -> None:
    assert subnet_file.previous_subnet(tmp_path / "subnet.env") is None
    assert subnet_file.previous_subnet(tmp_path) is None


def test_the_network_of_an_earlier_run(tmp_path: Path) -> None:
    file = tmp_path / "subnet.env"
    assert subnet_file.previous_network(file) is None
    file.write_text(TEXT)
    assert subnet_file.previous_network(file) == NETWORK
    file.write_text("FLANNEL_SUBNET=11.0.59.1/24\n")  # v0.2.0's
    assert subnet_file.previous_network(file) is None


def test_it_is_removed_once(tmp_path: Path) -> None:
    file = tmp_path / "subnet.env"
    file.write_text(TEXT)
    assert [subnet_file.remove(file), subnet_file.remove(file)] == [True, False]
    with pytest.raises(HostError, match=rf"cannot remove subnet file {tmp_path}: Is a directory"):
        subnet_file.remove(tmp_path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


SPECIAL: dict[str, Callable[[Path], None]] = {
    "FIFO": os.mkfifo,
    "socket": _socket,
    "endless device": lambda path: os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5)),  # /dev/zero
    "empty device": lambda path: os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3)),  # /dev/null
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_regular_file_is_neither_read_nor_replaced_nor_removed(tmp_path: Path, kind: str) -> None:
    """-subnet-file=/dev/null, by root."""
    if "device" in kind and os.geteuid():
        pytest.skip("makes a device")
    path = tmp_path / "subnet.env"
    SPECIAL[kind](path)
    before = path.lstat()
    assert subnet_file.previous_subnet(path) is None
    with pytest.raises(HostError, match=f"^cannot write subnet file {path}: it is not a regular file; see -subnet-fi"):
        subnet_file.write(path, TEXT)
    assert subnet_file.remove(path) is False
    assert path.lstat().st_ino == before.st_ino
    assert list(tmp_path.iterdir()) == [path]


def test_of_an_endless_file_the_beginning_is_read(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    path.write_text(TEXT)
    os.truncate(path, 1 << 40)
    assert subnet_file.previous_network(path) == NETWORK


@pytest.mark.parametrize("put", [os.symlink, os.link])
def test_a_link_in_place_of_the_draft_is_not_followed(tmp_path: Path, put: Callable[[Path, Path], None]) -> None:
    """Another user can put it there if the directory is /tmp."""
    path, target = tmp_path / "subnet.env", tmp_path / "precious"
    target.write_text("precious\n")
    put(target, tmp_path / ".subnet.env")
    subnet_file.write(path, TEXT)
    assert (path.read_text(), target.read_text()) == (TEXT, "precious\n")
    assert not path.is_symlink()
    assert sorted(tmp_path.iterdir()) == [target, path]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TEXT, subnet_file.SubnetFile(NETWORK, SUBNET, 1472, ip_masq=False)),
        (TEXT.replace("false", "true"), subnet_file.SubnetFile(NETWORK, SUBNET, 1472, ip_masq=True)),
        (TEXT.replace("1472", "wide"), subnet_file.SubnetFile(NETWORK, SUBNET, 0, ip_masq=False)),
        ("FLANNEL_SUBNET=11.0.59.1/24\n", None),
        ("FLANNEL_NETWORK=11.0.0.0/16\nFLANNEL_SUBNET=x\n", None),
        ("", None),
    ],
)
def test_the_whole_file_is_read_if_it_has_network_and_subnet(
    tmp_path: Path, text: str, expected: subnet_file.SubnetFile | None
) -> None:
    path = tmp_path / "subnet.env"
    path.write_text(text)
    assert subnet_file.read(path) == expected
    assert subnet_file.read(tmp_path / "missing") is None
