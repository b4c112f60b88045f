"""What the kernel shows to a process of the programs that an earlier one left: their places and their peers."""

from __future__ import annotations

import subprocess
import sys
from ipaddress import IPv4Address

import pytest
from support.bpf_programs import ALIAS, SENDERS, attached, config
from support.fast_path_host import namespace, run, tun

from flannelpy.backend.attachment import Attachment
from flannelpy.backend.left_programs import has_left_programs, left_program_ids
from flannelpy.backend.udp.fast_path import FastPath
from flannelpy.backend.udp.left_peers import left_peers
from flannelpy.linux import bpf
from flannelpy.linux.netlink.client import Netlink
from flannelpy.netfilter.address_ranges import AddressRanges
from flannelpy.rtnetlink.filters import Hook

__all__ = ["namespace", "tun"]
pytestmark = pytest.mark.usefixtures("root")

_QUESTION = "import sys; from flannelpy.linux.bpf import keys_of_map; next(keys_of_map(int(sys.argv[1]), 'senders'))"


def test_left_programs_show_all_their_peers(tun: str) -> None:
    addresses = [int(IPv4Address(sender)) for sender in SENDERS]

    async def scenario(netlink: Netlink) -> None:
        assert await left_peers(netlink, ALIAS) is None
        fast_path = FastPath(config(tun))
        await attached(fast_path, netlink)
        fast_path.release()
        assert await left_peers(netlink, ALIAS) == AddressRanges((address, address) for address in addresses)
        assert await left_peers(netlink, f"{ALIAS} other") is None

    run(scenario)


def test_both_programs_must_be_in_their_places(tun: str) -> None:
    """Not any two of one process."""

    async def are_there(netlink: Netlink) -> bool:
        return await has_left_programs(netlink, tun, "eth1", ALIAS)

    async def scenario(netlink: Netlink) -> None:
        assert not await are_there(netlink)
        fast_path = FastPath(config(tun))
        await attached(fast_path, netlink)
        assert await are_there(netlink)
        await fast_path.close_outgoing(netlink)
        await Attachment("eth1", Hook.EGRESS, ALIAS).attach(netlink, fast_path._programs["outgoing"].fd)
        assert not await are_there(netlink)
        await fast_path.attach(netlink)
        await Attachment("eth1", Hook.INGRESS, ALIAS).detach(netlink)
        assert not await are_there(netlink)

    run(scenario)


def test_without_cap_sys_admin_the_kernel_shows_no_peers(tun: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = "the kernel does not show the maps of BPF program"

    async def scenario(netlink: Netlink) -> None:
        await attached(FastPath(config(tun)), netlink)
        number, *_ = await left_program_ids(netlink, ALIAS)
        assert f"{refused} {number}: Operation not permitted" in ask_without_cap_sys_admin(number)

        def refuse(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(bpf, "_bpf", refuse)
        assert await left_peers(netlink, ALIAS) is None

    run(scenario)


def ask_without_cap_sys_admin(number: int) -> str:
    """Return how a process without the capability fails that asks for the peers of a program."""
    command = [sys.executable, "-c", _QUESTION, str(number)]
    bounded = ["setpriv", "--bounding-set=-sys_admin", *command]
    return subprocess.run(bounded, capture_output=True, text=True, check=False).stderr
