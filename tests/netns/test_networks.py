"""Several networks in one daemon: each connected, isolated from the others, and unaffected by their failures."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import permutations, product

import pytest
from lab import ETCD_PREFIX, Daemon, Host, Lab, wait_for
from support.hosts import asleep
from support.tenants import NETWORKS, Tenant, subnet_file

from flannelpy.control import client
from flannelpy.host.subnet_file import previous_subnet, render
from flannelpy.serving.metrics import exposition

pytestmark = pytest.mark.usefixtures("root")

BACKENDS = {"blue": "vxlan", "green": "udp"}
MTUS = {"blue": 1450, "green": 1472}
FLAGS = ("-iface=eth1", "-networks=blue,green")


def put_config(lab: Lab, name: str, text: str = "") -> None:
    text = text or f'{{"Network":"{NETWORKS[name]}","Backend":{{"Type":"{BACKENDS[name]}"}}}}'
    lab.etcd_request("PUT", f"{ETCD_PREFIX}/{name}/config", value=text)


def is_ready(host: Host, name: str) -> bool:
    return subnet_file(host, name).with_name(f"{name}.env.ready").exists()


def rules(host: Host) -> list[str]:
    return sorted(host.run("ip", "rule").stdout.splitlines())


def counters(host: Host, name: str) -> dict[str, float]:
    """Return the counters of a network in the metrics, by their names and labels."""
    answer = client.fetch(host.run_dir / "flannel/networks/control.sock", with_peers=False)
    lines = [
        line for line in exposition(answer.report).splitlines() if "_total{" in line and f'network="{name}"' in line
    ]
    return {series: float(value) for series, _, value in (line.rpartition(" ") for line in lines)}


def status(daemon: Daemon) -> str:
    return [line for line in daemon.notified if line.startswith("STATUS=")][-1]


class World(Lab):
    """Three hosts, two networks, a container of each network on every host."""

    tenants: list[Tenant]

    def start(self) -> None:
        """Start all daemons and containers, and wait until all pairs inside a network are connected."""
        for daemon in [host.start_daemon(*FLAGS) for host in self.hosts]:
            daemon.wait_ready()
        self.tenants = [Tenant(host, name) for host, name in product(self.hosts, NETWORKS)]
        for tenant in self.tenants:
            tenant.start()
        wait_for(lambda: all(answered(self.pairs(inside=True))), 10, "all pairs inside")

    def pairs(self, *, inside: bool) -> list[tuple[Tenant, Tenant]]:
        pairs = permutations(self.tenants, 2)
        return [(one, other) for one, other in pairs if (one.network == other.network) is inside]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(hosts=3) as world:
        for name in NETWORKS:
            put_config(world, name)
        world.start()
        yield world


def answered(pairs: list[tuple[Tenant, Tenant]]) -> list[bool]:
    """Return for each pair whether its ping was answered; all are sent at once."""
    pings = [one.popen("ping", "-n", "-c2", "-i0.1", "-W1", str(other.address)) for one, other in pairs]
    return [" 0% packet loss" in ping.communicate(timeout=10)[0] for ping in pings]


def test_all_pairs_inside_and_none_across(world: World) -> None:
    inside, across = world.pairs(inside=True), world.pairs(inside=False)
    assert (len(inside), len(across)) == (12, 18)
    one, other = across[0]
    assert "Packet filtered" in one.ping(other).stdout  # the first time, because the kernel limits ICMP errors
    assert answered(inside) == [True] * 12
    assert answered(across) == [False] * 18


def test_each_subnet_file_and_lease_is_its_networks(world: World) -> None:
    for name, network in NETWORKS.items():
        node = world.etcd_request("GET", f"{ETCD_PREFIX}/{name}/subnets")["node"]
        leased = {lease["key"].rpartition("/")[2].replace("-", "/"): lease["value"] for lease in node["nodes"]}
        assert len(leased) == len(world.hosts)
        for host in world.hosts:
            subnet = previous_subnet(subnet_file(host, name))
            assert subnet
            assert subnet.subnet_of(network)
            assert f'"PublicIP":"{host.public_ip}"' in leased[str(subnet)]
            assert ('"BackendType":"vxlan"' in leased[str(subnet)]) == (BACKENDS[name] == "vxlan")
            text = render(network, subnet, MTUS[name], ip_masq=False)
            assert subnet_file(host, name).read_text() == text


def test_each_log_line_names_its_network(world: World) -> None:
    log = world.hosts[0].log()
    for name in NETWORKS:
        assert re.search(rf"\] {name}: Subnet lease acquired: ", log)
        assert len(re.findall(rf"\] {name}: Subnet added: ", log)) == 2
    text = status(world.hosts[0].daemons[-1])
    assert re.fullmatch(r"STATUS=blue: subnet 11\.1\.\S+ \(.*\), next hops: 2; green: subnet 11\.2\..*hops: 2", text)


def test_a_removed_rule_is_restored(world: World) -> None:
    host = world.hosts[0]
    before = rules(host)
    host.configure("rule delete from 11.1.0.0/16 to 11.2.0.0/16 prohibit")
    wait_for(lambda: rules(host) == before, 2, "the rule to come back")
    message = "Restored rule against packets from 11.1.0.0/16 to 11.2.0.0/16: it was missing"
    wait_for(lambda: message in host.log(), 2, "the repair in the log")


def test_a_config_that_breaks_stops_its_network_alone_and_only_at_the_next_start(world: World) -> None:
    """While green's config is broken, blue's packets travel, through a restart of all daemons; then green returns."""
    one, other = next(pair for pair in world.pairs(inside=True) if pair[0].network == "blue")
    flood = one.popen("ping", "-n", "-q", "-i0.02", "-c10000", str(other.address))
    put_config(world, "green", '{"Network":"11.2.0.0/16","Backend":{"Type":"udp","Port":"8285"}}')
    for host in world.hosts:
        assert host.daemons[-1].stop() == 0
        host.start_daemon(*FLAGS)
    for host in world.hosts:
        daemon = host.daemons[-1]
        daemon.wait_for_log(
            r'E.*\] green: Failed to retrieve network config: Backend.Port "8285" is not a number from 1 to 65535'
        )
        wait_for(partial(is_ready, host, "blue"), 10, "blue to be ready")
        daemon.wait_ready(20)  # with the networks that are up, after ten seconds: Docker waits for it
        assert not is_ready(host, "green")
        assert re.search(r"blue: subnet .*; green: Waiting for the network config in etcd$", status(daemon))
    put_config(world, "green")
    for host in world.hosts:
        wait_for(partial(is_ready, host, "green"), 10, "green to be ready")
    flood.send_signal(signal.SIGINT)
    assert " 0% packet loss" in flood.communicate(timeout=10)[0]
    wait_for(lambda: all(answered(world.pairs(inside=True))), 10, "all pairs inside")
    assert not any(answered(world.pairs(inside=False)))


def test_a_network_that_loses_its_subnet_gets_another_and_the_others_continue(world: World) -> None:
    host = world.hosts[0]
    daemon = host.daemons[-1]
    blue = next(tenant for tenant in world.tenants if (tenant.host, tenant.network) == (host, "blue"))
    far = next(tenant for tenant in world.tenants if (tenant.host, tenant.network) == (world.hosts[1], "blue"))
    subnet = previous_subnet(subnet_file(host, "green"))
    key = f"{ETCD_PREFIX}/green/subnets/{str(subnet).replace('/', '-')}"
    counted = counters(host, "green")
    assert counted['flannelpy_packets_total{direction="in",network="green"}'] > 0

    def is_ready_again() -> bool:
        now = counters(host, "green")
        assert all(now.get(series, -1) >= value for series, value in counted.items())
        return is_ready(host, "green")

    world.etcd_request("PUT", key, value='{"PublicIP":"172.17.8.200"}', ttl="600")
    daemon.wait_for_log(rf"E.*\] green: subnet {subnet} is held by 172\.17\.8\.200 now.*; trying again in 10 s")
    wait_for(lambda: not subnet_file(host, "green").exists(), 2, "the subnet file to go")
    assert not is_ready(host, "green")
    wait_for(lambda: "green: not ready: subnet" in status(daemon), 2, "the status line")
    assert blue.ping(far).returncode == 0
    wait_for(is_ready_again, 20, "another subnet")
    assert previous_subnet(subnet_file(host, "green")) != subnet
    assert daemon.process.poll() is None
    assert "Restored rule" not in daemon.log().partition(f"subnet {subnet} is held")[2]  # flannelpy itself removed it


DUPLICATE = "from 11.1.0.0/16 to 11.2.0.0/16 fwmark 7 prohibit"
#: At the priority of flannelpy's rules; some differ in one field from the rule of an earlier version.
FOREIGN_RULES = (
    "from 11.1.2.3/16 to 10.2.0.0/16 prohibit",
    "from 11.1.0.0/16 to 11.9.0.0/16 prohibit",
    "from 11.1.0.0/16 to 11.2.0.0/16 blackhole",
    DUPLICATE,
    "from 10.1.0.0/16 to 10.2.0.0/16 prohibit protocol 85",
)


@contextmanager
def foreign_rules(host: Host) -> Iterator[list[str]]:
    """Return foreign rules as ``ip rule`` shows them."""
    before = rules(host)
    host.configure(*(f"rule add {rule} priority 8285" for rule in FOREIGN_RULES))
    yield sorted(set(rules(host)) - set(before))
    host.configure(*(f"rule delete {rule} priority 8285" for rule in FOREIGN_RULES))
    assert rules(host) == before


def test_rules_of_others_are_left_alone(world: World) -> None:
    """These include another flannelpy's rules, and one that resembles ours and has host bits."""
    host = world.hosts[0]
    with foreign_rules(host) as foreign:
        assert len(foreign) == len(FOREIGN_RULES)
        host.configure("rule delete from 11.2.0.0/16 to 11.1.0.0/16 prohibit protocol 85")
        ours = "8285:\tfrom 11.2.0.0/16 to 11.1.0.0/16 prohibit proto 85"
        wait_for(lambda: ours in rules(host), 2, "our rule to come back")
        assert set(foreign) <= set(rules(host))
        assert host.daemons[-1].process.poll() is None


def test_the_rules_of_an_earlier_version_are_replaced_by_marked_ones(world: World) -> None:
    """A foreign rule before one of them prevents that, because the kernel would remove the foreign rule instead."""
    host = world.hosts[0]
    one, other = "from 11.1.0.0/16 to 11.2.0.0/16 prohibit", "from 11.2.0.0/16 to 11.1.0.0/16 prohibit"
    before = rules(host)
    with foreign_rules(host) as foreign:
        with asleep(host.daemons[-1]):
            host.configure(*(f"rule delete {pair} protocol 85" for pair in (one, other)))
            host.configure(*(f"rule add {pair} priority 8285" for pair in (one, other)))
        expected = sorted([*before, *foreign, f"8285:\t{one}"])
        wait_for(lambda: rules(host) == expected, 2, "marked rules")
        host.configure(f"rule delete {DUPLICATE} priority 8285", f"rule delete {one} priority 8285 protocol 0")
        host.configure(f"rule add {DUPLICATE} priority 8285")


def test_cleanup_with_another_subnet_file_takes_nothing_from_a_running_daemon(world: World) -> None:
    host = world.hosts[0]
    before = rules(host), host.run("ip", "route").stdout, host.run("iptables", "-t", "nat", "-S").stdout
    done = host.run(sys.executable, "-P", "-m", "flannelpy", "-cleanup")
    for marked in (
        "device flannel.1 (flannelpy /run/flannel/networks/blue.env)",
        "rule against packets from 11.1.0.0/16",
    ):
        assert marked in done.stderr
    assert (rules(host), host.run("ip", "route").stdout, host.run("iptables", "-t", "nat", "-S").stdout) == before


def test_cleanup_leaves_nothing_of_any_network(world: World) -> None:
    """This test is the last, because it removes everything."""
    host = world.hosts[0]
    argv = [sys.executable, "-P", "-m", "flannelpy", *FLAGS, f"-etcd-endpoints={world.etcd.url}", "-host-id=host1"]
    done = host.run(*argv, "-cleanup", check=False)
    message = "a flannelpy runs here with the subnet file /run/flannel/networks/blue.env: stop it first"
    assert (done.returncode, done.stderr.splitlines()[-1].split("] ")[1]) == (1, message)
    assert host.daemons[-1].stop() == 0
    host.run(*argv, "-cleanup", "-release")
    assert "flannel" not in host.run("ip", "link").stdout
    assert "prohibit" not in host.run("ip", "rule").stdout
    assert not [line for line in host.run("ip", "route").stdout.splitlines() if " via 11." in line]
    assert {path.suffix for path in (host.run_dir / "flannel/networks").iterdir()} == {".lock"}
    for name in NETWORKS:
        node = world.etcd_request("GET", f"{ETCD_PREFIX}/{name}/subnets")["node"]
        assert f'"{host.public_ip}"' not in str(node)


@pytest.mark.parametrize(
    ("green", "message"),
    [
        ('{"Network":"11.1.128.0/17"}', r"Network 11\.1\.128\.0/17 overlaps 11\.1\.0\.0/16, the network blue"),
        (
            '{"Network":"11.2.0.0/16","Backend":{"Type":"vxlan"}}',
            "VNI 1 belongs to the network blue: choose another one in Backend",
        ),
    ],
    ids=["addresses", "VNI"],
)
def test_of_two_networks_that_need_the_same_resource_the_later_one_waits(
    make_lab: Callable[..., Lab], green: str, message: str
) -> None:
    """The first network has it; the other network waits for another config."""
    lab = make_lab(hosts=1)
    put_config(lab, "blue")
    daemon = lab.hosts[0].start_daemon(*FLAGS)
    wait_for(lambda: is_ready(lab.hosts[0], "blue"), 10, "blue to be ready")
    put_config(lab, "green", green)
    daemon.wait_for_log(rf"E.*\] green: Failed to retrieve network config: {message}$")
    put_config(lab, "green")
    daemon.wait_ready(15)
    wait_for(lambda: is_ready(lab.hosts[0], "green"), 10, "green to be ready")


def test_a_network_whose_port_is_taken_is_started_again(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=1)
    [host] = lab.hosts
    for name in NETWORKS:
        put_config(lab, name)
    with host.popen("socat", "-u", f"UDP-RECV:8285,bind={host.public_ip}", "-") as rival:
        wait_for(lambda: "8285" in host.run("ss", "-lun").stdout, 5, "the rival")
        daemon = host.start_daemon(*FLAGS)
        daemon.wait_for_log(
            r"E.*\] green: cannot listen on UDP .*:8285: Address already in use.*; trying again in 10 s"
        )
        wait_for(lambda: is_ready(host, "blue"), 10, "blue to be ready")
        rival.kill()
    wait_for(lambda: is_ready(host, "green"), 20, "green to be ready")
