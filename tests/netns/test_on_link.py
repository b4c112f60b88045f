"""The kernel decides which hosts are on the link, with any prefix length of an address.

host1 has its address with /32, and a route to the network of the link, as some clouds configure it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from lab import Container, Host, Lab, wait_for

BACKENDS = {"host-gw": {"Type": "host-gw"}, "DirectRouting": {"Type": "vxlan", "DirectRouting": True}}
LINK = "172.17.8.0/24 dev eth1"

pytestmark = pytest.mark.usefixtures("root")


class Case(NamedTuple):
    """``ip`` commands, the commands that undo them, and whether host2 and host3 are on the link after the first."""

    does: list[str]
    undoes: list[str]
    on_link: tuple[bool, bool]


def route(words: str, on_link: tuple[bool, bool]) -> Case:
    return Case([f"route add {words}"], [f"route delete {words}"], on_link)


CASES = {
    "a router for one peer": route("172.17.8.103 via 172.17.8.102", (True, False)),
    "a router for half of the link": route(
        "172.17.8.103/32 via 172.17.8.102 dev eth1 proto bird metric 9", (True, False)
    ),
    "a router with an IPv6 address": route("172.17.8.103 via inet6 fe80::1 dev eth1", (True, False)),
    "another interface": route("172.17.8.102/31 dev elsewhere", (False, False)),
    "no way": route("unreachable 172.17.8.102", (False, True)),
    "a policy rule to a router": Case(
        ["route add default via 172.17.8.102 dev eth1 table 100", "rule add to 172.17.8.103 lookup 100"],
        ["rule delete to 172.17.8.103 lookup 100", "route delete default table 100"],
        (True, False),
    ),
    "a policy rule to the link": Case(
        [
            f"route add {LINK} table 100",
            "rule add to 172.17.8.96/27 lookup 100",
            "route add 172.17.8.1 dev eth1",
            f"route delete {LINK}",
        ],
        [
            f"route add {LINK}",
            "route delete 172.17.8.1 dev eth1",
            "rule delete to 172.17.8.96/27 lookup 100",
            f"route delete {LINK} table 100",
        ],
        (True, True),
    ),
    "a default route by the link, where a router answers ARP for all": Case(
        ["route add default dev eth1", f"route delete {LINK}"],
        [f"route add {LINK}", "route delete default dev eth1"],
        (True, True),
    ),
    "a point-to-point address": Case(
        [
            "route add 172.17.8.1 dev eth1",
            "address add 192.0.2.1 peer 172.17.8.103 dev eth1",
            f"route delete {LINK}",
        ],
        [
            f"route add {LINK}",
            "address delete 192.0.2.1 peer 172.17.8.103 dev eth1",
            "route delete 172.17.8.1 dev eth1",
        ],
        (False, True),
    ),
    "a second address with a network": Case(
        ["address add 172.17.8.98/28 dev eth1", "route add 172.17.8.1 dev eth1", f"route delete {LINK}"],
        [f"route add {LINK}", "route delete 172.17.8.1 dev eth1", "address delete 172.17.8.98/28 dev eth1"],
        (True, True),
    ),
    "a router that counts as on the link": Case(
        ["route add default via 172.17.8.1 dev eth1 onlink", f"route delete {LINK}"],
        [f"route add {LINK}", "route delete default"],
        (False, False),
    ),
}


@pytest.fixture(scope="module", params=BACKENDS)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Return a lab whose hosts reach each other by plain routes."""
    with Lab(hosts=3) as lab:
        lab.put_config(json.dumps({"Network": "11.0.0.0/16", "Backend": BACKENDS[request.param]}))
        host = lab.hosts[0]
        host.configure(
            f"address delete {host.public_ip}/24 dev eth1",
            f"address add {host.public_ip}/32 dev eth1",
            f"route add {LINK}",
            "link add elsewhere type bridge",
            "address add 192.0.2.65/26 dev elsewhere",
            "link set elsewhere up",
        )
        lab.start_daemons("-iface=eth1")
        for one in lab.hosts:
            one.add_container()
        yield lab


def direct(lab: Lab) -> tuple[bool, ...]:
    """Return the peers to which host1 has a plain route."""
    shown = lab.hosts[0].run("ip", "route", "show", "proto", "85").stdout
    return tuple(f"{other.subnet()} via {other.public_ip} dev eth1" in shown for other in lab.hosts[1:])


def routed(lab: Lab) -> tuple[bool, ...]:
    """Return the peers to which host1 has any route of flannelpy."""
    shown = lab.hosts[0].run("ip", "route", "show", "proto", "85").stdout
    return tuple(f"{other.subnet()} via" in shown for other in lab.hosts[1:])


def is_ready(host: Host) -> bool:
    return (host.run_dir / "flannel/ready").exists()


def pings(source: Container, target: Container) -> bool:
    return source.run("ping", "-n", "-c1", "-W2", str(target.address), check=False).returncode == 0


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("lab", ["host-gw"], indirect=True, scope="module")
def test_which_peers_are_on_the_link(lab: Lab, name: str) -> None:
    check(lab, name)


@pytest.mark.parametrize("name", ["a router for one peer", "a policy rule to a router", "another interface"])
@pytest.mark.parametrize("lab", ["DirectRouting"], indirect=True, scope="module")
def test_direct_routing_makes_the_same_decision(lab: Lab, name: str) -> None:
    check(lab, name)


def check(lab: Lab, name: str) -> None:
    does, undoes, on_link = CASES[name]
    host, *others = lab.hosts
    wait_for(lambda: direct(lab) == (True, True) and is_ready(host), 5, "plain routes")
    before = host.log()
    host.configure(*does)
    wait_for(lambda: direct(lab) == on_link, 3, f"plain routes {on_link}")
    is_host_gw = "flannel.1" not in host.run("ip", "link").stdout
    assert routed(lab) == (on_link if is_host_gw else (True, True))
    for other, is_on_link in zip(others, on_link, strict=True):
        if is_on_link:
            assert pings(host.containers[0], other.containers[0])
    if is_host_gw:
        lost = on_link.count(False)
        assert expected_status(host, lost)
        check_log(host, before, [other for other, on in zip(others, on_link, strict=True) if not on])
    host.configure(*undoes)
    wait_for(lambda: direct(lab) == (True, True), 3, "plain routes again")
    wait_for(lambda: is_ready(host), 3, "the host to be ready")
    assert host.daemons[-1].process.poll() is None


def expected_status(host: Host, lost: int) -> bool:
    """Return the expected status: it counts unreachable peers, and if all are, the host is not ready."""
    words = f"next hops: {2 - lost}" + (f", unreachable: {lost}" if lost else "")
    wait_for(lambda: host.daemons[-1].notified[-1].endswith(words), 3, words)
    return wait_for(lambda: is_ready(host) == (lost < 2), 3, "readiness that fits")


def check_log(host: Host, before: str, lost: list[Host]) -> None:
    """Assert that one line for each peer names the kernel's route, for any number of questions."""
    for number in (910, 911):
        host.configure(f"link set elsewhere txqueuelen {number}")  # causes a check
    logged = host.log()[len(before) :]
    lines = [line for line in logged.splitlines() if "is not on the link of eth1, which host-gw needs: the " in line]
    for other in lost:
        peer = f"{other.subnet()} via {other.public_ip}"
        assert sum(line.partition("Ignoring subnet ")[2].count(peer) for line in lines) == 1, logged
    assert len(lines) <= len(lost)


def test_a_link_that_is_down_is_named_and_comes_back(lab: Lab) -> None:
    host, other, _ = lab.hosts
    host.configure("link set eth1 down")
    host.daemons[-1].wait_for_log("E.*eth1 is down: no routes to other hosts")
    wait_for(lambda: not is_ready(host), 3, "not ready")
    host.configure("link set eth1 up", f"route add {LINK}")
    wait_for(lambda: direct(lab) == (True, True) and is_ready(host), 5, "plain routes again")
    assert pings(host.containers[0], other.containers[0])


def test_a_peer_whose_route_the_kernel_refuses_does_not_stop_the_others(make_lab: Callable[..., Lab]) -> None:
    """With a route without scope link, the kernel sends by the link, but accepts no gateway on it."""
    lab = make_lab(hosts=3)
    lab.put_config(json.dumps({"Network": "11.0.0.0/16", "Backend": {"Type": "host-gw"}}))
    host = lab.hosts[0]
    host.configure(
        f"address delete {host.public_ip}/24 dev eth1",
        f"address add {host.public_ip}/32 dev eth1",
        "route add 172.17.8.0/25 dev eth1 scope global",
        "route add 172.17.8.1 dev eth1",
        "route add 172.17.8.102 dev eth1",
    )
    lab.start_daemons("-iface=eth1")
    daemon = host.daemons[-1]
    third = lab.hosts[2].subnet()
    daemon.wait_for_log(
        rf"E.*Subnet {third} is unreachable: the kernel rejected the route to .*: Network is unreachable$"
    )
    wait_for(lambda: daemon.notified[-1].endswith("next hops: 1, unreachable: 1"), 3, "the status")
    assert is_ready(host)
    host.configure("route replace 172.17.8.0/25 dev eth1 scope link")
    wait_for(lambda: direct(lab) == (True, True), 12, "the route, once the kernel takes it")
    assert daemon.log().count(f"Subnet {third} is unreachable") == 1
