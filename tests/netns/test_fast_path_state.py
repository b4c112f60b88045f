"""What a fast path adds to the kernel's state, what it leaves alone, and what it restores."""

from __future__ import annotations

import re

import pytest
from support.bpf_programs import (
    ALIAS,
    PASSED,
    REDIRECTED,
    attached,
    config,
    own_tun,
    shell,
)
from support.fast_path_host import ARRIVING, STATE, namespace, own_links, results, run, tun
from support.packets import PORT

from flannelpy.backend.left_programs import remove_left_programs
from flannelpy.backend.udp.fast_path import FastPath
from flannelpy.errors import HostError
from flannelpy.linux.netlink.client import Netlink

__all__ = ["namespace", "tun"]


def test_a_fast_path_leaves_nothing(tun: str) -> None:
    async def scenario(netlink: Netlink) -> None:
        before = shell(STATE)
        fast_path = FastPath(config(tun))
        await attached(fast_path, netlink)
        assert results(fast_path) == (REDIRECTED, REDIRECTED)
        assert sorted(own_links()) == ["flannel0-cut", "flannel0-gro"]
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
_FILTER = "tc filter add dev eth1 %s protocol %s bpf bytecode '1,6 0 0 0' classid 1:1"
FOREIGN = {
    "clsact": "tc qdisc add dev eth1 clsact",
    "ingress": "tc qdisc add dev eth1 ingress",
    "pfifo": "tc qdisc add dev eth1 root pfifo limit 100",
    "filters": "; ".join(
        [
            "tc qdisc add dev eth1 clsact",
            _FILTER % ("egress prio 7", "ip"),
            _FILTER % ("ingress prio 7", "arp"),
            _FILTER % ("ingress prio 65530", "ip"),
        ]
    ),
}


def foreign(state: str) -> list[str]:
    """Return the lines that are not about our filter, nor about the qdisc that it needs."""
    return [line for line in state.splitlines() if "pref 65520" not in line and line]


def test_a_foreign_filter_that_came_later_keeps_the_qdisc(tun: str) -> None:
    async def scenario(netlink: Netlink) -> None:
        fast_path = FastPath(config(tun))
        await attached(fast_path, netlink)
        shell(_FILTER % ("egress prio 7", "ip"))
        await fast_path.close(netlink)
        assert "pref 7 bpf" in shell("tc filter show dev eth1 egress")
        assert "clsact" in shell("tc qdisc show dev eth1")

    run(scenario)


@pytest.mark.parametrize("protocol", ["ip", "all"])
def test_a_foreign_filter_in_front_of_ours_forbids_the_fast_path(tun: str, protocol: str) -> None:
    """It may accept a datagram, which the loop then gets with an unfinished checksum."""
    obstacle = "eth1 has a filter of another program at its ingress: bpf, priority 7"

    async def scenario(netlink: Netlink) -> None:
        shell("tc qdisc add dev eth1 clsact; " + _FILTER % ("ingress prio 7", protocol))
        before = shell(STATE)
        fast_path = FastPath(config(tun))
        with pytest.raises(HostError, match=obstacle):
            await attached(fast_path, netlink)
        assert shell(STATE) == before
        shell("tc filter del dev eth1 ingress prio 7")
        await fast_path.attach(netlink)
        assert await fast_path.flaws(netlink) == []
        shell(_FILTER % ("ingress prio 7", protocol))
        assert await fast_path.flaws(netlink) == [obstacle]
        with pytest.raises(HostError, match=obstacle):
            await fast_path.repair(netlink)
        await fast_path.close(netlink)
        assert shell(STATE) == before

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


VANDALISM = {
    "tc qdisc del dev eth1 clsact": ["eth1 lost the incoming program"],
    "tc filter del dev flannel0 egress": ["flannel0 lost the outgoing program"],
    "ip link del flannel0-gro": ["flannel0-gro was removed", "flannel0-cut was removed"],
    "ip link set flannel0-cut down": ["flannel0-cut was set down"],
    "ethtool -K flannel0-cut gro off": ["flannel0-cut got GRO off"],
    "ethtool -K flannel0-gro tso on": ["flannel0-gro got TSO on"],
    "ethtool -K flannel0-cut tso on": ["flannel0-cut got TSO on"],
    "tc filter del dev flannel0-cut ingress": ["flannel0-cut lost the gro program"],
    "tc filter del dev flannel0-gro ingress": ["flannel0-gro lost the cut program"],
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


#: What makes a repair impossible, and why it fails.
OBSTRUCTIONS = {
    "tc qdisc del dev eth1 clsact; tc qdisc add dev eth1 ingress_block 7 clsact": "cannot attach a BPF program to eth1",
    "ip link del flannel0-gro; ip link add flannel0-cut type bridge": "cannot make the veth pair flannel0-gro",
}


@pytest.mark.parametrize("command", OBSTRUCTIONS)
def test_a_repair_that_fails_raises_an_error_and_leaves_what_can_be_closed(tun: str, command: str) -> None:
    async def scenario(netlink: Netlink) -> None:
        fast_path = FastPath(config(tun))
        await attached(fast_path, netlink)
        shell(command)
        with pytest.raises(HostError, match=OBSTRUCTIONS[command]):
            await fast_path.repair(netlink)
        assert await fast_path.flaws(netlink)
        await fast_path.close(netlink)
        assert own_links() == []

    run(scenario)


def test_a_renamed_interface_loses_filter_and_qdisc(tun: str) -> None:
    async def scenario(netlink: Netlink) -> None:
        fast_path = FastPath(config(tun))
        await attached(fast_path, netlink)
        shell("ip link set eth1 name eth9")
        await fast_path.close(netlink)
        assert "clsact" not in shell("tc qdisc show dev eth9")

    run(scenario)


def test_the_qdisc_goes_also_if_only_the_filter_was_removed_before(tun: str) -> None:
    async def scenario(netlink: Netlink) -> None:
        fast_path = FastPath(config(tun))
        await attached(fast_path, netlink)
        shell("tc filter del dev eth1 ingress pref 65520")
        await fast_path.repair(netlink)
        assert ALIAS in shell("tc filter show dev eth1 ingress")
        await fast_path.close(netlink)
        assert "clsact" not in shell("tc qdisc show dev eth1")

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
        assert await remove_left_programs(netlink, f"{ALIAS} other") == []
        assert sorted(await remove_left_programs(netlink, ALIAS)) == [
            "BPF program at eth1",
            "BPF program at flannel0",
            "BPF program at flannel0-cut",
            "BPF program at flannel0-gro",
            "flannel0-cut",
            "flannel0-gro",
        ]
        assert shell(STATE) == before
        assert own_links() == []
        assert await remove_left_programs(netlink, ALIAS) == []

    run(scenario)


def test_a_host_that_does_not_forward_yet_has_the_loop_send(tun: str) -> None:
    """Docker switches forwarding on when it starts, after flannelpy."""

    async def scenario(netlink: Netlink) -> None:
        shell("sysctl -qw net.ipv4.ip_forward=0")
        fast_path = FastPath(config(tun))
        await attached(fast_path, netlink)
        assert results(fast_path) == (PASSED, REDIRECTED)
        shell("sysctl -qw net.ipv4.ip_forward=1")
        assert results(fast_path) == (REDIRECTED, REDIRECTED)
        await fast_path.close(netlink)

    run(scenario)
