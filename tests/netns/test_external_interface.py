"""The external interface on real kernels: which address is used, and when a daemon exits whose address moves."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import pytest
from lab import ETCD_PREFIX, Daemon, Host, Lab, wait_for

from flannelpy.host.external_interface_monitor import ADDRESS_PATIENCE

pytestmark = pytest.mark.usefixtures("root")

GATEWAY = "172.17.8.1"
DEFAULT = f"route add default via {GATEWAY}"
TYPES = ("udp", "vxlan", "host-gw", "alloc")


def prefix(backend: str) -> str:
    """Return the key prefix of the hosts with that backend."""
    return ETCD_PREFIX if backend == "udp" else f"/{backend}/network"


def put_configs(lab: Lab) -> None:
    for backend in TYPES:
        config = {"Network": "11.0.0.0/16", "Backend": {"Type": backend}}
        lab.etcd.put(f"{prefix(backend)}/config", json.dumps(config))


# An address that moves


class Move(NamedTuple):
    """``ip`` commands that move a host's address, and the place that the last log line names."""

    backend: str
    flags: tuple[str, ...]
    before: tuple[str, ...]
    commands: tuple[str, ...]
    place: str


NAMED = ("-iface=eth1",)
ETH2 = ("link add eth2 type veth peer name eth2-peer", "link set eth2-peer up", "link set eth2 up")
TO_BR0 = (
    "link add br0 type bridge",
    "link set eth1 master br0",
    "address delete {ip}/24 dev eth1",
    "address add {ip}/24 dev br0",
    "link set br0 up",
)
ENSLAVE = ("link add br0 type bridge", "link set br0 up", "link set eth1 master br0")
RENAME = ("link set eth1 down", "link set eth1 name wan0", "link set wan0 up")
DHCP = ("address flush dev eth1", "address add 172.17.8.222/24 dev eth1")
MOVES = (
    Move("udp", NAMED, (), RENAME, "eth1 was renamed to wan0, which has {ip}"),
    Move(
        "vxlan",
        NAMED,
        (),
        (*RENAME, "link property add dev wan0 altname eth1"),
        "eth1 was renamed to wan0, which has {ip}",
    ),
    Move("vxlan", NAMED, (), TO_BR0, "{ip} moved from eth1 to br0"),
    Move("udp", (), (DEFAULT,), TO_BR0, "{ip} moved from eth1 to br0"),
    Move("host-gw", ("-iface-regex=^172",), (), DHCP, "eth1 has 172.17.8.222 now instead of {ip}"),
    Move("alloc", ("-iface=eth9", "-iface=eth1"), (), DHCP, "eth1 has 172.17.8.222 now instead of {ip}"),
    Move(
        "udp",
        (),
        (DEFAULT, *ETH2, "address add 10.77.0.5/24 dev eth2"),
        ("address flush dev eth1", "route add default via 10.77.0.1 dev eth2"),
        "{ip} on eth1 was replaced by 10.77.0.5 on eth2",
    ),
    Move(
        "udp",
        ("-public-ip=10.255.0.8",),
        (DEFAULT, *ETH2, "address add 10.255.0.8/32 dev lo"),
        ("address delete 10.255.0.8/32 dev lo", "address add 10.255.0.8/32 dev eth2"),
        "10.255.0.8 moved from lo to eth2",
    ),
    Move(
        "vxlan",
        (*NAMED, "-public-ip=10.66.0.9"),
        (*ETH2, "address add 10.66.0.9/24 dev eth2"),
        RENAME,
        "eth1 was renamed to wan0",
    ),
    Move("udp", ("-iface=172.17.8.110",), (), DHCP, "eth1 has 172.17.8.222 now instead of {ip}"),
    Move("udp", NAMED, (), (*ENSLAVE, "address add {ip}/24 dev br0"), "{ip} moved from eth1 to br0"),
    Move(
        "vxlan",
        (),
        (DEFAULT, *ETH2, "address add 10.77.0.5/24 dev eth2"),
        ("link set eth1 down", "route replace default via 10.77.0.1 dev eth2"),
        "{ip} on eth1 was replaced by 10.77.0.5 on eth2",
    ),
)


def configure(host: Host, *commands: str) -> None:
    host.configure(*(command.format(ip=host.public_ip) for command in commands))


def start(host: Host, backend: str, *flags: str) -> Daemon:
    return host.start_daemon(f"-etcd-prefix={prefix(backend)}", *flags)


def is_ready(host: Host) -> bool:
    return (host.run_dir / "flannel/ready").exists()


def test_after_15_s_of_another_address_in_place_a_daemon_ends_and_logs_the_place() -> None:
    """Hosts whose addresses move, and three whose addresses are restored, run at the same time."""
    with Lab(hosts=len(MOVES) + 3) as lab:
        put_configs(lab)
        moving, staying = lab.hosts[: len(MOVES)], lab.hosts[len(MOVES) :]
        daemons = []
        for host, move in zip(moving, MOVES, strict=True):
            configure(host, *move.before)
            daemons.append(start(host, move.backend, *move.flags))
        others = [
            start(host, backend, *NAMED) for host, backend in zip(staying, ("udp", "vxlan", "host-gw"), strict=True)
        ]
        for daemon in [*daemons, *others]:
            daemon.wait_ready(30)
        cut = time.monotonic()
        for host in staying:
            configure(host, "address flush dev eth1")
        for host, move in zip(moving, MOVES, strict=True):
            configure(host, *move.commands)
        moved = time.monotonic()
        flapping, deleted, down = staying
        lab.switch.configure(f"link delete {deleted.name}")
        configure(down, "link set eth1 down")
        wait_for(lambda: not any(map(is_ready, lab.hosts)), 15, "no host to be ready")
        assert time.monotonic() < cut + ADDRESS_PATIENCE
        configure(down, "link set eth1 up", "address add {ip}/24 dev eth1")
        wait_for(lambda: is_ready(down), 5, "the link that was down to be ready again")
        wait_for(lambda: time.monotonic() > moved + ADDRESS_PATIENCE - 4, 20, "the time to be almost over")
        assert [daemon.process.poll() for daemon in daemons] == [None] * len(daemons)
        configure(
            flapping, "address add 172.17.8.200/24 dev eth1"
        )  # a virtual IP, which moves after its link has failed
        wait_for(lambda: all(daemon.process.poll() is not None for daemon in daemons), 15, "all to end")
        for daemon, move in zip(daemons, MOVES, strict=True):
            place = re.escape(move.place.format(ip=daemon.host.public_ip))
            assert daemon.process.poll() == 1, move
            assert re.search(rf"^E.*\] {place}: restart flannelpy to use it$", daemon.log().splitlines()[-1]), move
            assert "Traceback" not in daemon.log()
        configure(flapping, "address add {ip}/24 dev eth1")
        deleted.lab.switch.configure(
            f"link add {deleted.name} type veth peer name eth1 netns {deleted.netns}",
            f"link set {deleted.name} master br0 up",
        )
        configure(deleted, "address add {ip}/24 dev eth1", "link set eth1 up")
        wait_for(lambda: all(map(is_ready, staying)), 15, "those that are back to be ready")
        assert [daemon.process.poll() for daemon in others] == [None] * 3


# A host that reaches no other one


class Loss(NamedTuple):
    """A host that peers cannot reach after these commands, the error in its log, and what undoes them.

    ``switch:`` stands before what happens at the other end of the cable.
    """

    backend: str
    flags: tuple[str, ...]
    before: tuple[str, ...]
    commands: tuple[str, ...]
    line: str
    undo: tuple[str, ...]


SLASH_32 = ("address add {ip}/32 dev eth1", "address delete {ip}/24 dev eth1")
SLASH_24 = ("address add {ip}/24 dev eth1",)
LINK_ROUTE = "route add 172.17.8.0/24 dev eth1"
NO_ROUTE = r"No peer is reachable, such as \S+: the kernel has no route: "
UNREACHABLE = NO_ROUTE + "Network is unreachable"
IS_DOWN = "Link eth1 is down: no packets to and from other hosts"
ON_ETH2 = (*ETH2, "address add 10.66.0.{number}/24 dev eth2")
NAMED_BUT_ETH2 = (*NAMED, "-public-ip=10.66.0.{number}")
ON_LO = ("address add 10.255.0.{number}/32 dev lo", DEFAULT)
LOSSES = (
    Loss("udp", NAMED, (), SLASH_32, UNREACHABLE, SLASH_24),
    Loss("vxlan", NAMED, (), SLASH_32, UNREACHABLE, SLASH_24),
    Loss("vxlan", NAMED, (), ("route delete 172.17.8.0/24 dev eth1",), UNREACHABLE, (LINK_ROUTE,)),
    Loss("udp", NAMED, (*SLASH_32, LINK_ROUTE), ("link set eth1 down", "link set eth1 up"), UNREACHABLE, (LINK_ROUTE,)),
    Loss(
        "udp",
        NAMED,
        (*SLASH_32, f"route add {GATEWAY} dev eth1", DEFAULT),
        ("route delete default",),
        UNREACHABLE,
        (DEFAULT,),
    ),
    Loss(
        "udp",
        NAMED,
        (),
        ("rule add to 172.17.8.96/27 unreachable",),
        NO_ROUTE + "(No route to host|Network is unreachable)",
        ("rule delete to 172.17.8.96/27 unreachable",),
    ),
    Loss(
        "udp",
        ("-public-ip=10.255.0.{number}",),
        ON_LO,
        ("address flush dev eth1",),
        UNREACHABLE,
        (*SLASH_24, DEFAULT),
    ),
    Loss(
        "vxlan",
        ("-public-ip=10.255.0.{number}",),
        ON_LO,
        ("switch: link set {host} down",),
        r"No peer is reachable, such as \S+: the way out is eth1, which has no carrier",
        ("switch: link set {host} up",),
    ),
    Loss("udp", NAMED_BUT_ETH2, ON_ETH2, ("link set eth1 down",), IS_DOWN, ("link set eth1 up",)),
    Loss("vxlan", NAMED_BUT_ETH2, ON_ETH2, ("link set eth1 down",), IS_DOWN, ("link set eth1 up",)),
    Loss(
        "udp",
        NAMED_BUT_ETH2,
        ON_ETH2,
        ("switch: link set {host} down",),
        "Link eth1 has no carrier: no packets to and from other hosts",
        ("switch: link set {host} up",),
    ),
    *(
        Loss(
            backend,
            NAMED,
            (),
            ENSLAVE,
            "Link eth1 is a port of br0, so its address must be on br0: no packets to and from other hosts",
            ("link set eth1 nomaster",),
        )
        for backend in ("udp", "vxlan", "host-gw")
    ),
    Loss(
        "udp",
        ("-iface-regex=^1[17]",),
        (),
        ("address flush dev eth1",),
        r"Address \S+ is gone from eth1: no packets to and from other hosts",
        SLASH_24,
    ),
)


def test_a_host_that_reaches_no_other_one_is_not_ready_and_names_the_cause() -> None:
    """Hosts of all kinds at the same time, and one whose network cannot start while its interface is renamed."""
    with Lab(hosts=len(LOSSES) + 3) as lab:
        put_configs(lab)
        lab.etcd.put(f"{ETCD_PREFIX}/blue/config", '{"Network":"12.0.0.0/16","Backend":{"Type":"vxlan","VNI":9}}')
        *losing, renamed = lab.hosts[2:]
        for peer, backend in zip(lab.hosts, ("udp", "vxlan"), strict=False):
            start(peer, backend, *NAMED)
        renamed.configure("link add flannel.9 type bridge")  # the name is taken
        failing = renamed.start_daemon(*NAMED, "-networks=blue")
        failing.wait_for_log("; trying again in 10 s$")
        configure(renamed, *RENAME)
        words = [
            {"ip": str(host.public_ip), "number": str(number), "host": host.name}
            for number, host in enumerate(losing, 2)
        ]

        def change(at: int, commands: tuple[str, ...]) -> None:
            for command in commands:
                machine = lab.switch if command.startswith("switch: ") else losing[at]
                machine.configure(command.removeprefix("switch: ").format(**words[at]))

        daemons = []
        for at, (host, loss) in enumerate(zip(losing, LOSSES, strict=True)):
            change(at, loss.before)
            daemons.append(start(host, loss.backend, *(flag.format(**words[at]) for flag in loss.flags)))
        for daemon in daemons:
            daemon.wait_ready(30)
            daemon.host.add_container()
        time.sleep(1)
        assert all(map(is_ready, losing)), [daemon.notified[-1] for daemon in daemons if not is_ready(daemon.host)]
        for at, loss in enumerate(LOSSES):
            change(at, loss.commands)
        for daemon, loss in zip(daemons, LOSSES, strict=True):
            daemon.wait_for_log(rf"(?m)^E.*\] {loss.line}$")
        wait_for(lambda: not any(map(is_ready, losing)), 5, "no host to be ready")
        wait_for(lambda: all(" not ready: " in daemon.notified[-1] for daemon in daemons), 5, "all to notify the cause")
        for at, loss in enumerate(LOSSES):
            change(at, loss.undo)
        wait_for(lambda: all(map(is_ready, losing)), 15, "all hosts to be ready again")
        assert not any("was replaced by" in daemon.log() for daemon in daemons)
        assert failing.process.wait(15) == 1
        last = failing.log().splitlines()[-1]
        assert last.endswith(f"] eth1 was renamed to wan0, which has {renamed.public_ip}: restart flannelpy to use it")


# A public IP of this machine


OTHERS = {2: "10.255.0.2", 3: "10.66.0.3"}


@pytest.fixture(scope="module", params=["udp", "vxlan"])
def public(request: pytest.FixtureRequest, root: None) -> Iterator[Lab]:
    """Return four hosts with public IPs that are a second address, one on lo, one of another NIC, a plain one."""
    with Lab(hosts=4) as lab:
        lab.put_config(json.dumps({"Network": "11.0.0.0/16", "Backend": {"Type": request.param}}))
        second, on_lo, on_eth2, plain = lab.hosts
        configure(second, "address add 172.17.8.201/24 dev eth1")
        configure(on_lo, "address add 10.255.0.2/32 dev lo", DEFAULT)
        configure(on_eth2, *ETH2, "address add 10.66.0.3/24 dev eth2")
        for host in lab.hosts:
            routes = (f"route add {ip} via 172.17.8.{100 + number}" for number, ip in OTHERS.items())
            host.configure(*(route for route in routes if not route.endswith(str(host.public_ip))))
        flags = {
            second: (*NAMED, "-public-ip=172.17.8.201"),
            on_lo: ("-public-ip=10.255.0.2",),
            on_eth2: (*NAMED, "-public-ip=10.66.0.3"),
            plain: NAMED,
        }
        daemons = [host.start_daemon(*flags[host]) for host in lab.hosts]
        for daemon in daemons:
            daemon.wait_ready()
            daemon.host.add_container()
        for daemon in daemons:
            for host in lab.hosts:
                if host is not daemon.host:
                    daemon.wait_for_peer(host.subnet())
        yield lab


def test_hosts_with_public_ips_of_theirs_on_any_interface_reach_each_other(public: Lab) -> None:
    containers = [host.containers[0] for host in public.hosts]
    for source in containers:
        for target in containers:
            answers = source.ping_text(target.address, 2)
            assert answers.count("ttl=") == 2, (source.name, target.name, answers)


def test_the_mtu_of_a_public_ip_on_lo_is_that_of_the_interface_by_which_packets_leave(public: Lab) -> None:
    on_lo, plain = public.hosts[1], public.hosts[-1]
    assert on_lo.subnet_env()["FLANNEL_MTU"] == plain.subnet_env()["FLANNEL_MTU"]


def test_the_firewall_protects_the_public_ip(public: Lab) -> None:
    """A container must not send datagrams with the host's public IP, which is the source of the host's datagrams."""

    def is_protected(host: Host) -> bool:
        [public_ip] = re.findall(r"Using (\S+) as external endpoint", host.log())
        return f"! -d {public_ip}/32 -p udp" in host.run("iptables-save").stdout

    wait_for(lambda: all(map(is_protected, public.hosts)), 10, "the rules about each public IP")


def test_a_link_that_is_down_or_unplugged_is_not_ready_until_it_is_back(public: Lab) -> None:
    """Its address and name stay, so that only the state of the link shows the failure."""
    host = public.hosts[-1]
    daemon = host.daemons[0]
    wait_for(lambda: is_ready(host), 10, "the host to be ready")
    for problem, off, on in (
        ("is down", partial(configure, host, "link set eth1 down"), partial(configure, host, "link set eth1 up")),
        ("has no carrier", host.unplug, host.plug_in),
    ):
        off()
        daemon.wait_for_log(rf"^E.*\] Link eth1 {problem}: no packets to and from other hosts$")
        wait_for(lambda: not is_ready(host), 5, "the host to be not ready")
        on()
        wait_for(lambda: is_ready(host), 5, "the host to be ready again")
    assert daemon.process.poll() is None


def test_a_public_ip_that_no_interface_has_is_a_nats(public: Lab) -> None:
    host = public.hosts[-1]
    daemon = host.start_daemon(*NAMED, "-public-ip=192.0.2.9", "-subnet-file=/run/flannel/nat.env")
    daemon.wait_for_log(
        rf"^I.*\] No interface of this machine has the public IP 192\.0\.2\.9: .* to {host.public_ip} on eth1$"
    )
    daemon.kill()
    assert daemon.log().count("No interface of this machine") == 1


# Which address


class Start(NamedTuple):
    """``ip`` commands, flags or variables, and the address that flannelpy uses."""

    before: tuple[str, ...]
    flags: tuple[str, ...]
    address: str
    env: Mapping[str, str] = {}


ADDED = "address add {other}/24 dev eth1"
DEPRECATED = "address change {ip}/24 dev eth1 preferred_lft 0"
STARTS = (
    Start((ADDED, DEPRECATED), NAMED, "{other}"),
    Start((ADDED, DEPRECATED, DEFAULT), (), "{other}"),
    Start((DEPRECATED,), ("-iface={ip}",), "{ip}"),
    Start(
        ("address delete {ip}/24 dev eth1", "address add 172.17.9.140/24 dev eth1 scope host", ADDED), NAMED, "{other}"
    ),
    Start(("link property add dev eth1 altname to-the-rack-switch",), ("-iface=to-the-rack-switch",), "{ip}"),
    Start((), ("-iface=eth9", "-iface=eth1"), "{ip}"),
    Start((), (), "{ip}", {"FLANNELD_IFACE": "eth9 eth1"}),
    Start((ADDED,), ("-iface-regex={other}$",), "{other}"),
    Start((), ("-iface-regex=^wlan", "-iface-regex=^et.1$"), "{ip}"),
    Start((), (f"-iface-can-reach={GATEWAY}",), "{ip}"),
    Start((ADDED, f"route add 192.0.2.0/24 via {GATEWAY} src {{other}}"), ("-iface-can-reach=192.0.2.1",), "{other}"),
    Start((ADDED,), ("-public-ip={other}",), "{other}"),
)
REFUSALS = (
    ("-iface=eth9\nE1122 forged", r"Error looking up interface 'eth9\nE1122 forged': no such network interface"),
    ("-iface-regex=^wlan", "Error looking up interface by -iface-regex='^wlan': it matches no address and no name"),
    ("-iface-can-reach=192.0.2.1", "-iface-can-reach=192.0.2.1: the kernel has no route to it"),
    ("-iface-can-reach={ip}", "-iface-can-reach={ip} is an address of this machine"),
    ("-iface=eth8 -iface-regex=x", "Failed to find interface to use that matches the interfaces and/or"),
)


@pytest.fixture(scope="module")
def plain(root: None) -> Iterator[Lab]:
    """Return a host for each start, because all start at the same time."""
    with Lab(hosts=len(STARTS) + len(REFUSALS)) as lab:
        yield lab


def test_which_address_is_used(plain: Lab) -> None:
    expected = {}
    for number, (host, start) in enumerate(zip(plain.hosts, STARTS, strict=False)):
        words = {"ip": str(host.public_ip), "other": f"172.17.8.{200 + number}"}
        host.configure(*(command.format(**words) for command in start.before))
        daemon = host.start_daemon(*(flag.format(**words) for flag in start.flags), env=start.env)
        expected[daemon] = start.address.format(**words)
    for daemon, address in expected.items():
        daemon.wait_for_log(rf"Using {re.escape(address)} as external interface$", 30)
        daemon.kill()


def test_flags_that_match_no_interface_are_one_line_and_exit_1(plain: Lab) -> None:
    expected = {}
    for host, (flags, failures) in zip(plain.hosts[len(STARTS) :], REFUSALS, strict=True):
        flag, *more = flags.format(ip=host.public_ip).split(" -")
        expected[host.start_daemon(flag, *(f"-{one}" for one in more))] = failures.format(ip=host.public_ip)
    for daemon, failures in expected.items():
        assert daemon.process.wait(30) == 1
        assert failures in daemon.log().splitlines()[-1]
        assert "Traceback" not in daemon.log()


def test_host_gw_accepts_a_second_address_and_rejects_that_of_another_interface(
    make_lab: Callable[..., Lab],
) -> None:
    """Peers use the public IP as gateway, so it must be on the link by which they reach this host."""
    lab = make_lab(hosts=2)
    lab.put_config(json.dumps({"Network": "11.0.0.0/16", "Backend": {"Type": "host-gw"}}))
    ours, theirs = lab.hosts
    configure(ours, "address add 172.17.8.150/24 dev eth1")
    configure(theirs, "address add 10.255.0.2/32 dev lo")
    refused = theirs.start_daemon(*NAMED, "-public-ip=10.255.0.2")
    assert refused.process.wait(20) == 1
    assert "10.255.0.2 is an address of lo, and the host-gw backend routes by eth1" in refused.log().splitlines()[-1]
    for host, *flags in ((ours, "-public-ip=172.17.8.150"), (theirs, *NAMED)):
        host.start_daemon(*flags).wait_ready()
        host.add_container()
    ours.daemons[-1].wait_for_peer(theirs.subnet())
    theirs.daemons[-1].wait_for_peer(ours.subnet())
    assert f"{ours.subnet()} via 172.17.8.150 dev eth1" in theirs.run("ip", "route").stdout
    [source], [target] = ours.containers, theirs.containers
    assert source.ping_text(target.address, 2).count("ttl=") == 2
