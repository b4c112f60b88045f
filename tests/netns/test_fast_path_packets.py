"""Which packets the programs take, and which they leave to the loop, as the host's state changes."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from support.bpf_programs import (
    ETHERNET,
    PASSED,
    REDIRECTED,
    attached,
    config,
    outer_headers,
    shell,
)
from support.fast_path_host import ARRIVING, LEAVING, PEER, namespace, next_tick, results, run, tun
from support.packets import BOUND, ICMP, PORT, checksum, ipv4_packet

from flannelpy.backend.udp.fast_path import FastPath
from flannelpy.datapath.fast_path import maps
from flannelpy.datapath.source_check import SourceCheck
from flannelpy.linux.clock import BootClock
from flannelpy.linux.netlink.client import Netlink

__all__ = ["namespace", "tun"]


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
        next_tick()
        assert fast_path._programs["incoming"].test_run(ARRIVING).result == PASSED
        assert fast_path.counts() == {"incoming_no_device": 1}
        await fast_path.close(netlink)

    run(scenario)


def test_without_the_pair_packets_go_to_the_tun(tun: str) -> None:
    async def scenario(netlink: Netlink) -> None:
        fast_path = FastPath(config(tun))
        await attached(fast_path, netlink)
        shell("ip link del flannel0-cut")
        assert results(fast_path) == (REDIRECTED, REDIRECTED)
        await fast_path.close(netlink)

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
        (f"ip rule add pref 1 ipproto udp dport {PORT} prohibit", 100, "outgoing_other_way"),
        (f"ip rule add pref 1 ipproto udp sport {PORT} prohibit", 100, "outgoing_other_way"),
        (f"ip rule add pref 1 ipproto udp dport {PORT + 1} prohibit", 100, None),
        ("ip rule add pref 1 ipproto tcp prohibit", 100, None),
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
        for name in ("routes", "senders", "subnets", "peers"):
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
        # It announces the loop, but what its kernel has sent may still arrive.
        fast_path.set(PEER.subnet, public_ip, in_kernel=False)
        assert results(fast_path) == (PASSED, REDIRECTED)
        fast_path.set(PEER.subnet, public_ip, in_kernel=True)
        assert results(fast_path) == (REDIRECTED, REDIRECTED)
        # It moves to another host: its packets no longer come from the old one.
        fast_path.set(PEER.subnet, public_ip + 50, in_kernel=True)
        assert results(fast_path) == (REDIRECTED, PASSED)
        carried = fast_path.tally(PEER.subnet)
        assert carried
        assert (carried.packets_out, carried.packets_in) == (2, 2)
        fast_path.remove(PEER.subnet)
        assert results(fast_path) == (PASSED, PASSED)
        assert fast_path.tally(PEER.subnet) is None
        assert (fast_path.removed_tally.packets_out, fast_path.removed_tally.bytes_in) == (2, 56)
        await fast_path.close(netlink)

    run(scenario)


@pytest.mark.parametrize("source_check", SourceCheck)
def test_a_sender_may_have_several_subnets(tun: str, source_check: SourceCheck) -> None:
    """As for a minute after its subnet has changed; each packet counts for the subnet of its source."""
    public_ip, former = IPv4Address(PEER.public_ip), IPv4Network("11.0.110.0/24")

    async def scenario(netlink: Netlink) -> None:
        fast_path = FastPath(config(tun, source_check))
        await attached(fast_path, netlink)
        for subnet in (former, PEER.subnet):
            fast_path.set(subnet, public_ip, in_kernel=True)
            assert _received(fast_path, "11.0.101.2", "11.0.110.2") == [REDIRECTED, REDIRECTED]
        is_strict = source_check is SourceCheck.STRICT
        assert _received(fast_path, "11.0.111.2") == [PASSED if is_strict else REDIRECTED]
        assert [_packets_in(fast_path, subnet) for subnet in (PEER.subnet, former)] == [2 if is_strict else 3, 2]
        fast_path.remove(former)
        assert _received(fast_path, "11.0.110.2") == [PASSED if is_strict else REDIRECTED]
        fast_path.remove(PEER.subnet)
        assert _received(fast_path, "11.0.101.2", "11.0.110.2") == [PASSED, PASSED]
        await fast_path.close(netlink)

    run(scenario)


def _received(fast_path: FastPath, *sources: str) -> list[int]:
    """Return what the incoming program does with one packet of the peer from each source."""
    packets = [ipv4_packet(source, "11.0.59.2", bytes(8), protocol=ICMP) for source in sources]
    datagrams = [ETHERNET + outer_headers(PEER.public_ip, str(BOUND), len(packet)) + packet for packet in packets]
    next_tick()
    return [fast_path._programs["incoming"].test_run(datagram).result for datagram in datagrams]


def _packets_in(fast_path: FastPath, subnet: IPv4Network) -> int:
    carried = fast_path.tally(subnet)
    assert carried
    return carried.packets_in


def test_datagrams_have_the_ttl_of_a_socket(tun: str) -> None:
    async def scenario(netlink: Netlink) -> None:
        shell("sysctl -qw net.ipv4.ip_default_ttl=99")
        fast_path = FastPath(config(tun))
        await attached(fast_path, netlink)
        result, made = fast_path._programs["outgoing"].test_run(LEAVING)
        assert (result, made[22], checksum(made[14:34])) == (REDIRECTED, 99, 0)
        await fast_path.close(netlink)

    run(scenario)
