"""What a fast path adds to the kernel's state, what it leaves alone, and what it restores."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from support.bpf_programs import (
    ALIAS,
    ETHERNET,
    PASSED,
    PEERS,
    REDIRECTED,
    attached,
    config,
    outer_headers,
    own_namespace,
    own_tun,
    shell,
)
from support.packets import BOUND, ICMP, OWN_SUBNET, PORT, ipv4_packet

from flannelpy.backend.udp.fast_path import FastPath, remove_left
from flannelpy.bpf.instructions import Helper, call
from flannelpy.datapath.fast_path import golden, incoming, maps, outgoing
from flannelpy.datapath.fast_path.parts import Constants
from flannelpy.datapath.source_check import SourceCheck
from flannelpy.errors import HostError
from flannelpy.linux.clock import BootClock
from flannelpy.linux.netlink.client import Netlink

PEER = PEERS[0]
LEAVING = ETHERNET + ipv4_packet("11.0.59.2", "11.0.101.2", bytes(8), protocol=ICMP)
_INNER = ipv4_packet("11.0.101.2", "11.0.59.2", bytes(8), protocol=ICMP)
ARRIVING = ETHERNET + outer_headers(PEER.public_ip, str(BOUND), len(_INNER)) + _INNER
#: As tc(8) lists them: of everything but the interfaces of flannelpy.
STATE = (
    "for i in eth1 switch; do tc qdisc show dev $i; tc filter show dev $i ingress; tc filter show dev $i egress; done"
)


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with own_namespace():
        yield


@pytest.fixture
def tun(namespace: None) -> Iterator[str]:
    with own_tun() as tun:
        yield tun.name


def run(work: Callable[[Netlink], Awaitable[Any]]) -> None:
    async def with_netlink() -> None:
        async with Netlink() as netlink:
            await work(netlink)

    asyncio.run(with_netlink())


def results(fast_path: FastPath) -> tuple[int, int]:
    """Return what the programs do with a packet for a peer, and from it."""
    programs = fast_path._programs
    return programs["outgoing"].test_run(LEAVING).result, programs["incoming"].test_run(ARRIVING).result


def own_links() -> list[str]:
    return re.findall(r"\d+: (flannel0-\w+)@", shell("ip -o link"))


def test_a_fast_path_leaves_nothing(tun: str) -> None:
    async def scenario(netlink: Netlink) -> None:
        before = shell(STATE)
        fast_path = FastPath(config(tun))
        await attached(fast_path, netlink)
        assert results(fast_path) == (REDIRECTED, REDIRECTED)
        assert sorted(own_links()) == ["flannel0-gro", "flannel0-rx"]
        assert ALIAS in shell(STATE)
        await fast_path.close(netlink)
        assert shell(STATE) == before
        assert "clsact" not in shell(f"tc qdisc show dev {tun}")
        assert own_links() == []

    run(scenario)


@pytest.mark.parametrize("qdisc", ["clsact", "ingress", "pfifo", "filters"])
def test_foreign_qdiscs_and_filters_stay(tun: str, qdisc: str) -> None:
    async def scenario(netlink: Netlink) -> None:
        shell(FOREIGN[qdisc])
        before = shell(STATE)
        fast_path = FastPath(config(tun))
        await attached(fast_path, netlink)
        assert set(foreign(before)) <= set(foreign(shell(STATE)))
        await fast_path.close_outgoing(netlink)
        await fast_path.close(netlink)
        assert shell(STATE) == before

    run(scenario)


# A filter that matches nothing.
_FILTER = "tc filter add dev eth1 %s prio 7 protocol ip bpf bytecode '1,6 0 0 0' classid 1:1"
FOREIGN = {
    "clsact": "tc qdisc add dev eth1 clsact",
    "ingress": "tc qdisc add dev eth1 ingress",
    "pfifo": "tc qdisc add dev eth1 root pfifo limit 100",
    "filters": f"tc qdisc add dev eth1 clsact; {_FILTER % 'ingress'}; {_FILTER % 'egress'}",
}


def foreign(state: str) -> list[str]:
    """Return the lines that are not about our filter, nor about the qdisc that it needs."""
    return [line for line in state.splitlines() if "pref 65520" not in line and line]


def test_a_foreign_filter_that_came_later_keeps_the_qdisc(tun: str) -> None:
    async def scenario(netlink: Netlink) -> None:
        fast_path = FastPath(config(tun))
        await attached(fast_path, netlink)
        shell(_FILTER % "egress")
        await fast_path.close(netlink)
        assert "pref 7 bpf" in shell("tc filter show dev eth1 egress")
        assert "clsact" in shell("tc qdisc show dev eth1")

    run(scenario)


@pytest.mark.parametrize("first_to_go", [0, 1])
def test_two_networks_on_one_interface(tun: str, first_to_go: int) -> None:
    async def scenario(netlink: Netlink) -> None:
        before = shell(STATE)
        with own_tun() as other_tun:
            one = FastPath(config(tun))
            other = FastPath(config(other_tun.name)._replace(port=PORT + 1, alias=f"{ALIAS} other"))
            paths = [one, other]
            for each in paths:
                await attached(each, netlink)
            assert results(one) == (REDIRECTED, REDIRECTED)
            assert other._programs["incoming"].test_run(ARRIVING).result == PASSED
            await paths.pop(first_to_go).close(netlink)
            assert await paths[0].flaws(netlink) == []
            await paths[0].close(netlink)
            assert shell(STATE) == before

    run(scenario)


@pytest.mark.parametrize(
    "frame",
    {
        "of a VLAN": bytes(12) + b"\x81\x00\x00\x05" + ARRIVING[12:],
        "for all hosts": b"\xff" * 6 + ARRIVING[6:],
        "for another host": b"\x02" + ARRIVING[1:],
        "no IPv4": bytes(12) + b"\x88\xb5" + ARRIVING[14:],
        "no UDP": ARRIVING[:23] + b"\x84" + ARRIVING[24:],
        "too short": ARRIVING[:41],
    }.items(),
    ids=lambda named: named[0],
)
def test_what_is_not_for_our_socket_passes_without_a_count(tun: str, frame: tuple[str, bytes]) -> None:
    async def scenario(netlink: Netlink) -> None:
        fast_path = FastPath(config(tun))
        await attached(fast_path, netlink)
        assert fast_path._programs["incoming"].test_run(frame[1]).result == PASSED
        assert fast_path.counts() == {}
        await fast_path.close(netlink)

    run(scenario)


def test_the_deadline_ends_everything(tun: str) -> None:
    async def scenario(netlink: Netlink) -> None:
        fast_path = FastPath(config(tun))
        await fast_path.open(netlink)
        fast_path.set(PEER.subnet, IPv4Address(PEER.public_ip), in_kernel=True)
        assert results(fast_path) == (PASSED, PASSED)
        fast_path.extend(BootClock().now() + 60)
        assert results(fast_path) == (REDIRECTED, REDIRECTED)
        fast_path.extend(BootClock().now())
        assert results(fast_path) == (PASSED, PASSED)
        assert fast_path.counts() == {"outgoing_deadline": 2, "incoming_deadline": 2}
        await fast_path.close(netlink)

    run(scenario)


def test_without_the_tun_datagrams_go_to_the_loop(tun: str) -> None:
    async def scenario(netlink: Netlink) -> None:
        fast_path = FastPath(config(tun))
        await attached(fast_path, netlink)
        shell(f"ip link del {tun}")
        assert fast_path._programs["incoming"].test_run(ARRIVING).result == PASSED
        assert fast_path.counts() == {"incoming_no_device": 1}
        await fast_path.close(netlink)

    run(scenario)


def test_without_the_pair_packets_go_to_the_tun(tun: str) -> None:
    async def scenario(netlink: Netlink) -> None:
        fast_path = FastPath(config(tun))
        await attached(fast_path, netlink)
        shell("ip link del flannel0-rx")
        assert results(fast_path) == (REDIRECTED, REDIRECTED)
        await fast_path.close(netlink)

    run(scenario)


VANDALISM = {
    "tc qdisc del dev eth1 clsact": ["eth1 lost the incoming program"],
    "tc filter del dev flannel0 egress": ["flannel0 lost the outgoing program"],
    "ip link del flannel0-gro": ["flannel0-gro was removed", "flannel0-rx was removed"],
    "ip link set flannel0-rx down": ["flannel0-rx was set down"],
    "ethtool -K flannel0-rx gro off": ["flannel0-rx got GRO off"],
    "ethtool -K flannel0-gro tso on": ["flannel0-gro got TSO on"],
    "tc filter del dev flannel0-rx ingress": ["flannel0-rx lost the gro program"],
    "ip link del eth1; ip link add eth1 up type veth peer name switch; ip addr add 172.17.8.101/24 dev eth1": [
        "eth1 lost the incoming program"
    ],
}


@pytest.mark.parametrize("command", VANDALISM)
def test_repair(tun: str, command: str) -> None:
    async def scenario(netlink: Netlink) -> None:
        fast_path = FastPath(config(tun))
        await attached(fast_path, netlink)
        shell(command)
        assert await fast_path.flaws(netlink) == VANDALISM[command]
        await fast_path.repair(netlink)
        assert await fast_path.flaws(netlink) == []
        assert results(fast_path) == (REDIRECTED, REDIRECTED)
        await fast_path.close(netlink)

    run(scenario)


def test_a_recreated_tun_gets_its_programs() -> None:
    async def scenario(netlink: Netlink) -> None:
        with own_tun() as tun:
            fast_path = FastPath(config(tun.name))
            await attached(fast_path, netlink)
        with own_tun() as tun:
            assert await fast_path.flaws(netlink) == [
                "flannel0 was recreated, and the incoming program does not know it",
                "flannel0 lost the outgoing program",
            ]
            await fast_path.repair(netlink)
            assert await fast_path.flaws(netlink) == []
            assert results(fast_path) == (REDIRECTED, REDIRECTED)
            await fast_path.close(netlink)

    run(scenario)


def test_after_close_outgoing_repair_leaves_the_outgoing_program_away(tun: str) -> None:
    async def scenario(netlink: Netlink) -> None:
        fast_path = FastPath(config(tun))
        await attached(fast_path, netlink)
        await fast_path.close_outgoing(netlink)
        await fast_path.repair(netlink)
        assert await fast_path.flaws(netlink) == []
        assert "bpf" not in shell(f"tc filter show dev {tun} egress 2>/dev/null || true")
        await fast_path.attach(netlink)
        assert ALIAS in shell(f"tc filter show dev {tun} egress")
        await fast_path.close(netlink)

    run(scenario)


def test_the_programs_of_an_earlier_process_are_swapped(tun: str) -> None:
    async def scenario(netlink: Netlink) -> None:
        earlier = FastPath(config(tun))
        await attached(earlier, netlink)
        earlier.release()
        handles = re.findall(r"handle (\S+)", shell(STATE))
        links = own_links()
        later = FastPath(config(tun))
        await attached(later, netlink)
        assert await later.flaws(netlink) == []
        assert re.findall(r"handle (\S+)", shell(STATE)) == handles
        assert own_links() == links
        await later.close(netlink)
        assert "clsact" not in shell(STATE)

    run(scenario)


def test_what_a_dead_process_left_can_be_removed(tun: str) -> None:
    async def scenario(netlink: Netlink) -> None:
        before = shell(STATE)
        fast_path = FastPath(config(tun))
        await attached(fast_path, netlink)
        fast_path.release()
        assert await remove_left(netlink, f"{ALIAS} other") == []
        assert sorted(await remove_left(netlink, ALIAS)) == [
            "BPF program at eth1",
            "BPF program at flannel0",
            "BPF program at flannel0-rx",
            "flannel0-gro",
            "flannel0-rx",
        ]
        assert shell(STATE) == before
        assert own_links() == []
        assert await remove_left(netlink, ALIAS) == []

    run(scenario)


@pytest.mark.parametrize("helper", Helper)
def test_each_helper_refused(tun: str, monkeypatch: pytest.MonkeyPatch, helper: Helper) -> None:
    """As on a kernel without that helper function: the verifier refuses the program, and nothing is left."""
    refused, unknown = call(helper), call(9999)

    async def scenario(netlink: Netlink) -> None:
        before = shell(STATE)
        for module in (outgoing, incoming):
            original = module.program

            def without(*arguments: Any, original: Any = original, **how: Any) -> Any:
                program = original(*arguments, **how)
                return program._replace(
                    instructions=tuple(unknown if one == refused else one for one in program.instructions)
                )

            monkeypatch.setattr(module, "program", without)
        with pytest.raises(HostError) as error:
            await FastPath(config(tun)).open(netlink)
        assert re.fullmatch(
            r"the kernel refused the BPF program flannel_(outgoing|incoming): Invalid argument "
            r"\(invalid func unknown#9999\)",
            str(error.value),
        )
        assert shell(STATE) == before
        assert own_links() == []

    run(scenario)


def test_a_kernel_that_attaches_nothing(tun: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As without cls_bpf: nothing is left."""

    async def refuse(*_: object) -> None:
        raise HostError("cannot attach a BPF program to flannel0-rx: Operation not supported")

    async def scenario(netlink: Netlink) -> None:
        monkeypatch.setattr(Netlink, "replace_filter", refuse)
        with pytest.raises(HostError, match="cannot attach"):
            await FastPath(config(tun)).open(netlink)
        assert own_links() == []

    run(scenario)


@pytest.mark.parametrize(
    ("capabilities", "answer"),
    {
        "-all,+bpf,+net_admin": "attached",
        "-bpf,-sys_admin": "the kernel refused the BPF map routes: Operation not permitted; it needs CAP_BPF, and the "
        "system call bpf",
    }.items(),
)
def test_capabilities(capabilities: str, answer: str) -> None:
    script = str(Path(__file__).parent / "fast_path_probe.py")
    path = os.pathsep.join(str(Path(__file__).parents[1] / each) for each in (".", "../scripts"))
    done = subprocess.run(
        ["setpriv", f"--bounding-set={capabilities}", sys.executable, script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"{answer}\n", "")


def test_a_host_that_does_not_forward_yet_has_the_loop_send(tun: str) -> None:
    """Docker switches forwarding on when it starts, after flannelpy."""

    async def scenario(netlink: Netlink) -> None:
        shell("sysctl -qw net.ipv4.ip_forward=0")
        fast_path = FastPath(config(tun))
        await attached(fast_path, netlink)
        packet = golden.outgoing(Constants(OWN_SUBNET, BOUND, PORT, SourceCheck.PEER), PEERS[0].subnet, BOUND).packet
        program = fast_path._programs["outgoing"]
        assert program.test_run(packet) == (PASSED, packet)
        shell("sysctl -qw net.ipv4.ip_forward=1")
        assert program.test_run(packet)[0] == REDIRECTED
        await fast_path.close(netlink)

    run(scenario)


def test_an_interface_of_another_program_with_the_name_of_the_pair_is_an_error(tun: str) -> None:
    async def scenario(netlink: Netlink) -> None:
        shell("ip link add flannel0-gro type veth peer name other")
        with pytest.raises(HostError, match="flannel0-gro"):
            await FastPath(config(tun)).open(netlink)
        assert own_links() == ["flannel0-gro"]

    run(scenario)


@pytest.mark.parametrize(
    ("command", "size", "counted"),
    [
        ("true", 1472, None),
        ("true", 1473, "outgoing_too_big"),
        ("ip link set eth1 mtu 1000", 972, None),
        ("ip link set eth1 mtu 1000", 973, "outgoing_too_big"),
        ("ip route add 172.17.8.102 dev eth1 mtu lock 1000", 973, "outgoing_too_big"),
        ("ip route add 172.17.8.102 dev switch", 100, "outgoing_other_way"),
        ("ip rule add pref 1 to 172.17.8.102 unreachable", 100, "outgoing_other_way"),
        ("ip rule add pref 1 to 172.17.8.102 iif lo unreachable", 100, "outgoing_other_way"),
        ("ip rule add pref 1 to 172.17.8.102 iif eth1 unreachable", 100, None),
        ("ip -6 addr add fd00::1/64 dev eth1; ip route add 172.17.8.102 via inet6 fd00::2", 100, "outgoing_other_way"),
        ("ip link set eth1 down", 100, "outgoing_other_way"),
        ("sysctl -qw net.ipv4.ip_forward=0", 100, "outgoing_not_forwarding"),
    ],
)
def test_the_underlay_decides(tun: str, command: str, size: int, counted: str | None) -> None:
    """The look-up is that of a packet of this host."""
    packet = ETHERNET + ipv4_packet("11.0.59.2", "11.0.101.2", bytes(size - 20), protocol=ICMP)

    async def scenario(netlink: Netlink) -> None:
        fast_path = FastPath(config(tun))
        await attached(fast_path, netlink)
        shell(command)
        result = fast_path._programs["outgoing"].test_run(packet).result
        assert (result, fast_path.counts()) == ((PASSED, {counted: 1}) if counted else (REDIRECTED, {}))
        await fast_path.close(netlink)

    run(scenario)


def test_peers_for_which_a_map_has_no_space_stay_with_the_loop(tun: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(netlink: Netlink) -> None:
        for name in ("routes", "senders", "peers"):
            monkeypatch.setitem(maps.MAPS, name, maps.MAPS[name]._replace(entries=2))
        fast_path = FastPath(config(tun))
        await attached(fast_path, netlink)
        results(fast_path)
        subnets = [IPv4Network(f"11.0.{number}.0/24") for number in range(110, 120)]
        for number, subnet in enumerate(subnets):
            fast_path.set(subnet, BOUND + 100 + number, in_kernel=True)
        assert results(fast_path) == (REDIRECTED, REDIRECTED)
        assert fast_path.tally(subnets[-1]) is not None
        for subnet in subnets:
            fast_path.remove(subnet)
        await fast_path.close(netlink)

    run(scenario)


@pytest.mark.parametrize("source_check", SourceCheck)
def test_peers_change(tun: str, source_check: SourceCheck) -> None:
    async def scenario(netlink: Netlink) -> None:
        fast_path = FastPath(config(tun, source_check))
        await attached(fast_path, netlink)
        public_ip = IPv4Address(PEER.public_ip)
        fast_path.set(PEER.subnet, public_ip, in_kernel=False)
        assert results(fast_path) == (PASSED, PASSED)
        fast_path.set(PEER.subnet, public_ip, in_kernel=True)
        assert results(fast_path) == (REDIRECTED, REDIRECTED)
        # It moves to another host: its packets no longer come from the old one.
        fast_path.set(PEER.subnet, public_ip + 50, in_kernel=True)
        assert results(fast_path) == (REDIRECTED, PASSED)
        carried = fast_path.tally(PEER.subnet)
        assert carried
        assert (carried.packets_out, carried.packets_in) == (2, 1)
        fast_path.remove(PEER.subnet)
        assert results(fast_path) == (PASSED, PASSED)
        assert fast_path.tally(PEER.subnet) is None
        assert (fast_path.removed_tally.packets_out, fast_path.removed_tally.bytes_in) == (2, 28)
        await fast_path.close(netlink)

    run(scenario)
