"""The addresses at which HTTP is served, and ports and addresses that cannot be used."""

from __future__ import annotations

import socket

import pytest
from lab.etcd_server import free_ports

from flannelpy import cli
from flannelpy.errors import HostError
from flannelpy.web import listeners


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], ["0.0.0.0"]),
        (["-metrics-ip=10.0.0.1"], ["0.0.0.0"]),
        (["-healthz-ip=10.0.0.1"], ["10.0.0.1", "127.0.0.1"]),
        (["-healthz-ip=127.0.0.1"], ["127.0.0.1"]),
        (["-healthz-ip=10.0.0.1", "-metrics-ip=10.0.0.1"], ["10.0.0.1", "127.0.0.1"]),
        (
            ["-healthz-ip=127.0.0.1", "-metrics-ip=10.0.0.1", "-metrics-ip=10.0.0.2"],
            ["127.0.0.1", "10.0.0.1", "10.0.0.2"],
        ),
        (["-healthz-ip=127.0.0.1", "-metrics-ip=0.0.0.0"], ["0.0.0.0"]),
    ],
)
def test_addresses(flags: list[str], expected: list[str]) -> None:
    options = cli.parse(["-healthz-port=8471", *flags])
    assert [str(address) for address in listeners.addresses(options)] == expected


def test_a_port_that_is_taken_is_one_line_and_leaves_nothing_open() -> None:
    [port] = free_ports(1)
    with socket.create_server(("127.0.0.2", port)):
        options = cli.parse([f"-healthz-port={port}", "-healthz-ip=127.0.0.1", "-metrics-ip=127.0.0.2"])
        with pytest.raises(HostError) as caught:
            listeners.listen(options)
        assert str(caught.value) == (
            f"cannot listen on TCP 127.0.0.2:{port}: Address already in use; "
            "see -healthz-ip, -healthz-port and -metrics-ip"
        )
    opened = listeners.listen(options)
    assert [each.getsockname() for each in opened] == [("127.0.0.1", port), ("127.0.0.2", port)]
    listeners.close(opened)


@pytest.mark.parametrize(
    "flags",
    [
        ["-healthz-ip=192.0.2.1"],
        ["-metrics-ip=192.0.2.1"],
        ["-healthz-ip=192.0.2.1", "-metrics-ip=0.0.0.0"],
        ["-healthz-ip=127.0.0.1", "-metrics-ip=127.0.0.2", "-metrics-ip=192.0.2.1"],
    ],
)
def test_an_address_of_another_host_is_one_line(flags: list[str]) -> None:
    options = cli.parse(["-healthz-port=8471", *flags])
    with pytest.raises(
        HostError, match=r"cannot listen on TCP 192\.0\.2\.1:8471: Cannot assign requested address; see"
    ):
        listeners.listen(options)
