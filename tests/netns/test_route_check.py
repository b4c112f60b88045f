"""Routes and rules that lead packets elsewhere are named once; the host is not ready only if no peer is reached."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import pytest
from lab import Daemon, Host, Lab, wait_for

BACKENDS = ("host-gw", "vxlan", "udp")
DEVICES = {"host-gw": "eth1", "vxlan": "flannel.1", "udp": "flannel0"}

pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture(scope="module", params=BACKENDS)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Return a lab of three hosts; the tests change the routes of the first."""
    with Lab(hosts=3) as lab:
        lab.put_config(json.dumps({"Network": "11.0.0.0/16", "Backend": {"Type": request.param}}))
        lab.start_daemons("-iface=eth1")
        lab.hosts[0].add_container()
        lab.hosts[0].configure("link add elsewhere type bridge", "address add 192.0.2.1/24 dev elsewhere")
        lab.hosts[0].configure("link set elsewhere up")
        yield lab


def is_ready(host: Host) -> bool:
    return (host.run_dir / "flannel/ready").exists()


def status(daemon: Daemon) -> str:
    return next(line for line in reversed(daemon.notified) if line.startswith("STATUS="))


# The words behind "ip" that add or remove it; what is logged; whether it takes the packets to all peers.
CASES = {
    "a blackhole around all": (
        "route {} blackhole 11.0.0.0/16 metric 0 table 99",
        "",
        False,
    ),  # no rule leads to that table
    "a route of higher metric": ("route {} 11.0.0.0/16 via 192.0.2.9 metric 500", "", False),
    "a blackhole for a peer": ("route {} blackhole {peer25}", "route blackhole {peer25} proto boot takes", False),
    "a static route for half a peer": (
        "route {} {peer25} via 192.0.2.9 proto static",
        "route {peer25} via 192.0.2.9 dev elsewhere proto static takes",
        False,
    ),
    "prohibited addresses of a peer": ("route {} prohibit {peer25} proto bird", "route prohibit {peer25} proto", False),
    "a throw for a peer": ("route {} throw {peer25} table main", "route throw {peer25} proto boot takes", False),
    "a rule that prohibits": (
        "rule {} pref 100 to {peer} prohibit",
        "rule 100: from all to {peer} prohibit takes the host's packets",
        False,
    ),
    "a rule for containers": (
        "rule {} pref 101 from {own} to 11.0.0.0/16 blackhole",
        "rule 101: from {own} to 11.0.0.0/16 blackhole takes containers' packets",
        True,
    ),
    "a rule by interface": (
        "rule {} pref 102 iif docker0 unreachable",
        "rule 102: from all iif docker0 unreachable takes containers' packets",
        True,
    ),
}


@pytest.mark.sample("case", 4)
@pytest.mark.parametrize("case", CASES)
def test_what_leads_packets_elsewhere_is_named(lab: Lab, case: str) -> None:
    host, peer, _ = lab.hosts
    daemon = host.daemons[-1]
    command, message, is_all = CASES[case]
    _, upper = peer.subnet().subnets(1)
    names = {"peer": str(peer.subnet()), "peer25": str(upper), "own": str(host.subnet())}
    wait_for(lambda: is_ready(host) and "unreachable" not in status(daemon), 12, "the host to be undisturbed")
    before = daemon.log()
    host.configure(command.format("add", **names))
    host.configure(f"route add 11.0.240.0/24 via {peer.public_ip} dev eth1 proto 85")  # causes a check even without it
    if message:
        line = re.escape(message.format_map(names))
        daemon.wait_for_log(rf"E.*Packets to .* do not take flannelpy's routes: .*{line}", 5)
    if is_all:
        wait_for(lambda: not is_ready(host), 3, "not ready")
    for number in (900, 901):
        host.configure(f"link set eth1 txqueuelen {number}")  # causes a check
    assert is_ready(host) != is_all
    assert daemon.process.poll() is None
    host.configure(command.format("delete", **names))
    wait_for(lambda: is_ready(host) and "unreachable" not in status(daemon), 12, "all to be well again")
    logged = daemon.log()[len(before) :]
    assert len(re.findall("do not take flannelpy's routes", logged)) <= (2 if message else 0), logged
    host.run("ip", "route", "delete", "11.0.240.0/24", check=False)


def test_packets_that_rp_filter_rejects_are_no_evidence(lab: Lab) -> None:
    """Since Linux 6.14 the kernel answers about them as about those that a blackhole takes."""
    host, peer, _ = lab.hosts
    daemon = host.daemons[-1]
    wait_for(lambda: is_ready(host) and "unreachable" not in status(daemon), 12, "the host to be undisturbed")
    before = daemon.log()
    (_, own), (_, blocked) = host.subnet().subnets(1), peer.subnet().subnets(1)
    host.run("sysctl", "-qw", "net.ipv4.conf.docker0.rp_filter=1")
    host.configure(f"route add {own} dev elsewhere")  # so packets from there must not come by docker0
    query = ["ip", "route", "get", str(peer.subnet()[9]), "from", str(own[9]), "iif", "docker0"]
    assert host.run(*query, check=False).returncode != 0
    host.configure(f"route add blackhole {blocked}")
    daemon.wait_for_log(rf"E.*Packets to .* do not take flannelpy's routes: .*route blackhole {blocked}", 12)
    host.configure(f"route delete blackhole {blocked}", f"route delete {own}")
    host.run("sysctl", "-qw", "net.ipv4.conf.docker0.rp_filter=0")
    logged = daemon.log()[len(before) :]
    assert len(re.findall("do not take flannelpy's routes", logged)) <= 2, logged
    assert "Invalid argument" not in logged
    assert is_ready(host)


@pytest.mark.parametrize(
    "way", ["via 192.0.2.9", "via 192.0.2.9 proto static", "dev elsewhere proto 77", "nexthop via 192.0.2.9 weight 2"]
)
def test_two_more_specific_halves_are_named(lab: Lab, way: str) -> None:
    """With host-gw and vxlan they are harmless: peers have longer routes, so they take only unleased addresses."""
    host, *_ = lab.hosts
    daemon = host.daemons[-1]
    takes_all = "flannel0" in host.run("ip", "link").stdout
    before = daemon.log().count("do not take flannelpy's routes")
    halves = ("11.0.0.0/17", "11.0.128.0/17")
    host.configure(*(f"route add {half} {way}" for half in halves))
    if takes_all:
        daemon.wait_for_log(r"E.*Packets to every peer do not take flannelpy's routes: .*route 11\.0\.\d+\.0/17 ", 5)
        wait_for(lambda: not is_ready(host), 3, "not ready")
    host.configure(*(f"route delete {half} {way}" for half in halves))
    wait_for(lambda: is_ready(host), 12, "ready")
    assert takes_all or daemon.log().count("do not take flannelpy's routes") == before


@pytest.mark.sample("backend", 1)
@pytest.mark.parametrize("backend", ["vxlan", "udp"])
@pytest.mark.parametrize(
    ("interference", "refusal"),
    [
        ("route add 11.0.0.0/16 via 172.17.8.1 metric 700", ""),
        ("route add blackhole 11.0.0.0/17", ""),
        ("route add unreachable 11.0.128.0/18 proto static", ""),
        ("rule add pref 100 to 11.0.0.0/16 prohibit", "rule 100: from all to 11.0.0.0/16 prohibit takes"),
        ("rule add pref 99 lookup 1000", "route 11.0.0.0/16 via 172.17.8.1 dev eth1 proto boot table 1000, by rule 99"),
        ("route add 11.0.0.0/16 dev eth1 proto dhcp", "route 11.0.0.0/16 dev eth1 proto dhcp scope link takes"),
    ],
)
def test_a_start_is_refused_only_if_the_whole_network_is_led_elsewhere(
    make_lab: Callable[..., Lab], backend: str, interference: str, refusal: str
) -> None:
    lab = make_lab(hosts=1)
    lab.put_config(json.dumps({"Network": "11.0.0.0/16", "Backend": {"Type": backend}}))
    [host] = lab.hosts
    host.configure("route add 11.0.0.0/16 via 172.17.8.1 table 1000", interference)
    daemon = host.start_daemon("-iface=eth1")
    if refusal:
        assert daemon.process.wait(10) == 1
        line = f"Packets to 11.0.0.0/16 do not take flannelpy's routes: {refusal}"
        assert line in daemon.log().splitlines()[-1]
    else:
        daemon.wait_ready()
        assert ("do not take" in daemon.log()) == ("metric" not in interference)
