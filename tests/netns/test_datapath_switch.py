"""A running daemon leaves the fast path in time when an XFRM policy or a rule comes that the programs would bypass."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, cast

import pytest
from lab import Lab, wait_for
from support.bpf_programs import REDIRECTED, config, own_namespace, own_tun, shell
from support.datapaths import KERNEL, POLICY, RULES, announces, containers, pings, programs, start, status
from support.overlay import OUTER_PORT, Capture
from support.pcap import ETHERNET, moments

from flannelpy.backend.udp.datapath import KernelDatapath
from flannelpy.backend.udp.kernel_mode import KernelMode
from flannelpy.backend.udp.tun_keeper import TunKeeper
from flannelpy.datapath.fast_path import golden
from flannelpy.datapath.fast_path.parts import Constants
from flannelpy.host.bypass_guard import BypassGuard
from flannelpy.linux import descriptor_store
from flannelpy.linux.netlink.client import Netlink
from flannelpy.linux.tun import Tun
from flannelpy.registry.base import expires_in
from flannelpy.subnet.lease import Lease, LeaseAttrs
from flannelpy.subnet.lease_table import LeaseAdded

pytestmark = pytest.mark.usefixtures("root")

#: The outgoing program has stopped so many seconds after the kernel has a policy.
AT_ONCE = 0.1
#: -iptables-resync, and beside it the time of a check on a machine that is busy.
RESYNC, SLACK = 1, 3
PEER, PEER_IP = IPv4Network("11.0.101.0/24"), IPv4Address("172.17.8.102")


@pytest.fixture
def pair(make_lab: Callable[..., Lab]) -> Lab:
    """Return two hosts without daemons."""
    lab = make_lab(hosts=2)
    lab.put_config()
    return lab


@pytest.mark.timed
def test_after_an_xfrm_policy_datagrams_leave_for_a_tenth_of_a_second_at_most(pair: Lab, tmp_path: Path) -> None:
    start(pair, KERNEL, KERNEL)
    one, other = containers(pair)
    assert pings(one, other) == 3
    host, file = pair.hosts[0], tmp_path / "underlay.pcap"
    with Capture(pair.switch, "host1", f"udp port {OUTER_PORT} and src {host.public_ip}", file):
        ping = one.popen("ping", "-nq", "-c1500", "-i0.002", "-W1", str(other.address))
        wait_for(lambda: file.stat().st_size > 20_000, 5, "datagrams")
        begin = time.time()
        host.run(*POLICY.split())
        done = time.time()
        ping.communicate(timeout=30)
    times = list(moments(file, ETHERNET))
    assert times[-1] > begin - 0.05, "datagrams had ended before"
    assert times[-1] < done + AT_ONCE


class Reservation:
    """The lease of a host, for ever."""

    def seconds_left(self) -> None:
        """Return None: a reservation."""

    def announce(self, *, in_kernel: bool) -> None:
        """Do nothing."""

    async def announced(self) -> float:
        """Return that the lease has announced the kernel for ever."""
        return math.inf


def test_a_policy_stops_the_outgoing_program_while_the_filters_are_being_repaired() -> None:
    async def scenario(tun: Tun) -> None:
        settings = config(tun.name)
        mode = KernelMode(
            is_required=False,
            own_lease=Reservation(),
            create_guard=lambda datagrams, peers: BypassGuard(datagrams, peers, 3600),
            keeper=TunKeeper(descriptor_store.of_process()),
        )
        kernel = KernelDatapath(mode, settings, tun)
        async with Netlink() as netlink:
            await kernel.open(netlink)
        running = asyncio.create_task(kernel.run())
        kernel.apply([LeaseAdded(Lease(PEER, LeaseAttrs(PEER_IP, in_kernel=True), expires_in(86400), 1, 1))])
        await kernel.settled()
        programs = cast("Any", kernel)._fast_path._programs
        constants = Constants(settings.subnet, settings.bound, settings.port, settings.source_check, ttl=64)
        packet = golden.outgoing(constants, PEER, PEER_IP).packet

        def sends() -> bool:
            return bool(programs["outgoing"].test_run(packet)[0] == REDIRECTED)

        async def stopped(what: Callable[[], bool], seconds: float) -> None:
            async with asyncio.timeout(seconds):
                while what():  # noqa: ASYNC110  nothing tells
                    await asyncio.sleep(0.001)

        async with asyncio.timeout(5):
            while not sends():  # noqa: ASYNC110  nothing tells
                await asyncio.sleep(0.001)
        async with cast("Any", kernel)._busy:  # as a repair has it
            shell(POLICY)
            await stopped(sends, AT_ONCE)
            assert attached(tun)
        await stopped(lambda: attached(tun), 5)
        running.cancel()
        await kernel.close()

    with own_namespace(), own_tun() as tun:
        asyncio.run(scenario(tun))


def attached(tun: Tun) -> bool:
    """Return whether the device has an outgoing program."""
    return "flannel_outgoin" in shell(f"tc filter show dev {tun.name} egress")


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_stops_the_programs_of_a_running_daemon_within_the_resync_period(pair: Lab, rule: str) -> None:
    daemon, _ = start(pair, (*KERNEL, f"-iptables-resync={RESYNC}"), KERNEL)
    one, other = containers(pair)
    assert pings(one, other) == 3
    host, (add, remove) = pair.hosts[0], RULES[rule]
    host.run(*add.split())
    wait_for(lambda: not programs(host)["flannel0"], RESYNC + SLACK, "the removal of the outgoing program")
    assert programs(host)["eth1"]  # peers still send what only a kernel takes
    wait_for(lambda: not announces(host), 5, "the lease without the kernel")
    wait_for(lambda: not programs(host)["eth1"], 10, "the removal of the incoming program")
    assert pings(one, other) == 0
    [line] = re.findall(r"^E.*Datapath switched from kernel to loop: .*", daemon.log(), re.MULTILINE)
    assert "may match the datagrams between hosts" in line
    assert status(host) == {"datapath": "loop", "cause": line.partition("loop: ")[2]}
    host.run(*remove.split())
    assert pings(one, other) == 3  # by the loop
