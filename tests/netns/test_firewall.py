"""The iptables rules of a running daemon are restored when another program changes them, and prevent forged packets."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import Container, Daemon, Host, Lab, wait_connected, wait_for
from support.firewalls import FLAVOURS, Flavour, large_nftables
from support.hosts import asleep
from support.overlay import Capture

NETWORK = "11.0.0.0/16"
MASQUERADE, DROP, ZONE, ACCEPT, OUTWARD = (f"FLANNEL-{kind}-{NETWORK}" for kind in "MDZAO")
OUTSIDE = "172.17.8.1"  # has no route to the containers
DATAGRAMS = str(Path(__file__).parent / "datagrams.py")
FIREWALL_TURNS = str(Path(__file__).parent / "firewall_turns.py")
#: A duration of sleep that no other process on this machine uses.
_HANGS = f"sleep {100_000 + os.getpid()}"
#: One check a second, one more for a change during it, and a margin for a busy machine.
DEADLINE = 4.0
FOREIGN = ("-p", "tcp", "--dport", "9", "-j", "ACCEPT")
UDP = '{"Network":"11.0.0.0/16"}'
VXLAN = '{"Network":"11.0.0.0/16","Backend":{"Type":"vxlan"}}'


class Checked:
    """A host with a daemon whose rules are in place, and a container."""

    def __init__(self, flavour: Flavour, *flags: str) -> None:
        self.flavour = flavour
        self.host = flavour.host
        self.daemon = flavour.start_daemon("-ip-masq", *flags)
        self.container = self.host.add_container()
        wait_for(lambda: flavour.chains("filter") and flavour.chains("mangle"), 5, "all chains")
        self.rules = self.flavour.all_rules()

    def has_a_way_out(self) -> bool:
        return not self.container.run("ping", "-c1", "-W1", OUTSIDE, check=False).returncode

    def repairs(self) -> int:
        found = re.findall(r"repairs: (\d+)", "\n".join(self.daemon.notified))
        return int(found[-1]) if found else 0


@pytest.fixture(scope="module", params=FLAVOURS)
def checked(request: pytest.FixtureRequest) -> Iterator[Checked]:
    with Lab(hosts=1) as lab:
        lab.put_config()
        yield Checked(Flavour(lab.hosts[0], request.param), "-iptables-resync=1")


def flush(table: str) -> Callable[[Flavour], None]:
    return lambda flavour: flavour.restore(f"*{table}\n-F\nCOMMIT\n")


def change(*commands: str) -> Callable[[Flavour], None]:
    """Run iptables commands, each with the table as its first word."""

    def apply(flavour: Flavour) -> None:
        for command in commands:
            flavour.run("-t", *command.split())

    return apply


#: Cases that iptables-legacy runs too; the others prove nothing more about it.
BOTH = ("iptables -t nat -F", "the jump is deleted", "the jump is moved behind a foreign rule", "a rule is replaced")
SABOTAGE = {
    "iptables -t nat -F": flush("nat"),
    "mangle is flushed": flush("mangle"),
    "raw is flushed": flush("raw"),
    "the jump is deleted": change(f"nat -D POSTROUTING -j {MASQUERADE}"),
    "the jump is deleted from raw": change("raw -D OUTPUT 1", "raw -D PREROUTING 1"),
    "the jump is moved behind a foreign rule": change(
        f"nat -D POSTROUTING -j {MASQUERADE}",
        "nat -A POSTROUTING -p udp --dport 9 -j ACCEPT",
        f"nat -A POSTROUTING -j {MASQUERADE}",
    ),
    "a rule that accepts all comes first": change("mangle -I FORWARD 1 -j ACCEPT"),
    "the jump is repeated": change(f"nat -A POSTROUTING -j {MASQUERADE}"),
    "the chain is emptied": change(f"nat -F {MASQUERADE}"),
    "the chain is deleted": change(
        "mangle -F FORWARD", "mangle -F PREROUTING", f"mangle -F {DROP}", f"mangle -X {DROP}"
    ),
    "a rule is replaced": change(f"nat -R {MASQUERADE} 2 -s 11.0.0.0/16 -j RETURN"),
    "a rule is added": change(f"nat -I {MASQUERADE} 1 -j ACCEPT"),
    "rules change places": change(f"nat -D {MASQUERADE} 1", f"nat -A {MASQUERADE} -s {NETWORK} -d {NETWORK} -j RETURN"),
    "a chain of that name leads elsewhere": change(f"raw -F {ZONE}", f"raw -A {ZONE} -j DROP"),
}


CASES = [(flavour, kind) for flavour in FLAVOURS for kind in SABOTAGE if flavour == "nft" or kind in BOTH]


@pytest.mark.sample("kind", 9)
# Without the scope, every test would have a lab of its own: ``kind`` is no fixture.
@pytest.mark.parametrize(("checked", "kind"), CASES, indirect=["checked"], scope="module")
def test_lost_rules_are_restored(checked: Checked, kind: str) -> None:
    """Rules of other programs, before and behind flannelpy's, stay unchanged."""
    flavour, sabotage = checked.flavour, SABOTAGE[kind]
    before, repairs, logged = checked.rules, checked.repairs(), checked.daemon.log().count("Restored iptables")
    foreign = [("nat", "POSTROUTING"), ("mangle", "FORWARD"), ("raw", "PREROUTING")]
    with asleep(checked.daemon):  # or it restores a jump to the chain before that is deleted
        sabotage(flavour)
    for table, hook in foreign:
        flavour.run("-t", table, "-A", hook, *FOREIGN)

    def ours(rules: dict[str, list[str]]) -> list[str]:
        return [line for lines in rules.values() for line in lines if "FLANNEL" in line]

    wait_for(lambda: ours(flavour.all_rules()) == ours(before), DEADLINE, "the rules")
    assert checked.has_a_way_out()
    wait_for(lambda: checked.repairs() > repairs, 2, "a repair in the status")
    assert checked.daemon.log().count("Restored iptables") > logged
    for table, hook in foreign:
        flavour.run("-t", table, "-D", hook, *FOREIGN)
    for table, accepting in (("nat", "POSTROUTING -p udp --dport 9 -j ACCEPT"), ("mangle", "FORWARD -j ACCEPT")):
        flavour.host.run(f"/usr/sbin/iptables-{flavour.name}", "-t", table, "-D", *accepting.split(), check=False)
    assert flavour.all_rules() == before


def test_accept_local_is_restored(checked: Checked) -> None:
    path = "/proc/sys/net/ipv4/conf/flannel0/accept_local"
    checked.host.run("sh", "-c", f"echo 0 >{path}")
    wait_for(lambda: checked.host.run("cat", path).stdout == "1\n", DEADLINE, "accept_local")
    checked.daemon.wait_for_log("Restored accept_local of flannel0: another program set it to 0")


def test_after_a_restart_nothing_is_repaired_or_written_twice(checked: Checked) -> None:
    checked.daemon.stop()
    checked.daemon = checked.flavour.start_daemon("-ip-masq", "-iptables-resync=1")
    checked.daemon.wait_for_log("Watching for new subnet leases")
    time.sleep(2.5)  # two checks
    assert checked.flavour.all_rules() == checked.rules
    assert "Restored" not in checked.daemon.log()


def test_by_default_rules_that_nft_flushes_are_restored_within_seven_seconds() -> None:
    with Lab(hosts=1) as lab:
        lab.put_config()
        checked = Checked(Flavour(lab.hosts[0], "nft"))
        checked.host.run("nft", "flush", "ruleset")
        assert not checked.has_a_way_out()
        wait_for(lambda: checked.flavour.chains("filter"), 7, "the rules")
        assert checked.has_a_way_out()
        assert {table: checked.flavour.chains(table) for table in ("nat", "mangle", "raw", "filter")} == {
            "nat": {MASQUERADE},
            "mangle": {DROP},
            "raw": {ZONE, ACCEPT},
            "filter": {ACCEPT, OUTWARD},
        }


# Large tables


@pytest.mark.timed
def test_no_turn_of_the_loop_is_long_with_30000_foreign_rules_and_10000_peers() -> None:
    """A turn has at most 5 ms of thread CPU time.  iptables-legacy lists ten times as fast as iptables-nft.

    On a busy machine cold caches make single turns up to three times as long.  A turn with too much work is long in
    each run, so one of three runs must be within the limit.
    """
    rules = "".join(
        f'-A KUBE -s 10.{n // 250}.{n % 250}.0/24 -m comment --comment "FLANNEL {n}" -j RETURN\n' for n in range(30_000)
    )
    with Lab(hosts=1) as lab:
        flavour = Flavour(lab.hosts[0], "legacy")
        lab.hosts[0].run("nft", "-f", "-", input=large_nftables())
        flavour.restore(f"*nat\n:KUBE - [0:0]\n{rules}-A POSTROUTING -s 10.0.0.0/8 -j KUBE\nCOMMIT\n")
        argv = ["env", f"PATH={flavour.env['PATH']}", sys.executable, FIREWALL_TURNS, "10000"]
        for _ in range(3):
            longest, repairs = flavour.host.run(*argv, timeout=180).stdout.split()
            assert repairs == "3"
            if float(longest) < 5:
                break
        else:
            pytest.fail(f"in each of three runs a turn was too long; the last one took {longest} ms")


# Several daemons


def test_two_daemons_keep_to_their_own_chains() -> None:
    with Lab(hosts=1) as lab:
        [host] = lab.hosts
        lab.etcd_request("PUT", "/blue/config", value='{"Network":"11.1.0.0/16","Backend":{"Type":"udp","Port":8286}}')
        lab.etcd_request("PUT", "/green/config", value='{"Network":"11.2.0.0/16","Backend":{"Type":"vxlan"}}')
        flavour = Flavour(host, "nft")
        flags = {
            name: (f"-etcd-prefix=/{name}", f"-subnet-file=/run/flannel/{name}.env", "-iptables-resync=1")
            for name in ("blue", "green")
        }
        blue = flavour.start_daemon("-ip-masq", *flags["blue"])
        flavour.start_daemon("-ip-masq", *flags["green"])
        both = {
            table: {f"FLANNEL-{kind}-11.{n}.0.0/16" for n in (1, 2) for kind in kinds} for table, kinds in KINDS.items()
        }
        wait_for(lambda: {table: flavour.chains(table) for table in both} == both, 5, "the chains of both")
        before = flavour.all_rules()
        flush("nat")(flavour)
        wait_for(lambda: sorted(flavour.rules("nat")) == sorted(before["nat"]), DEADLINE, "the rules of both")
        time.sleep(2.5)  # two checks, in which neither daemon moves the other's jump
        assert host.log().count("Restored iptables") == 2  # a line of each daemon
        blue.stop()
        flavour.clean_up(*flags["blue"])
        assert {table: flavour.chains(table) for table in both} == {
            table: {f"FLANNEL-{kind}-11.2.0.0/16" for kind in kinds} for table, kinds in KINDS.items()
        }
        assert not any("11.1.0.0/16" in line for lines in flavour.all_rules().values() for line in lines)
        assert host.log().count("Restored iptables") == 2


KINDS = {"nat": "M", "mangle": "D", "raw": "ZA", "filter": "AO"}


# Commands that do not work

BROKEN = {
    "missing": None,
    "hanging": _HANGS,
    "failing": "echo 'Another app is currently holding the xtables lock.' >&2; exit 4",
    "forbidden": "echo 'Permission denied (you must be root)' >&2; exit 4",
    "printing garbage": r"head -c 100000 /dev/zero | tr '\0' '\377'",
    "printing nothing": "exit 0",
}


def broken(tools: Path, script: str | None) -> dict[str, str]:
    """Return an environment in which the iptables commands fail in this way."""
    for name in ("iptables", "iptables-save", "iptables-restore"):
        (tools / name).unlink(missing_ok=True)
        if script is not None:
            (tools / name).write_text(f"#!/bin/sh\n{script}\n")
            (tools / name).chmod(0o755)
    for name in ("env", "ip", "sh", "mount"):
        (tools / name).unlink(missing_ok=True)
        (tools / name).symlink_to(str(shutil.which(name)))
    return {"PATH": str(tools) if script is None else f"{tools}:{os.environ['PATH']}"}


@pytest.fixture
def host(lab: Lab) -> Iterator[Host]:
    """Return the host; no daemon outlives a test."""
    [host] = lab.hosts
    yield host
    host.kill_daemons()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(hosts=1) as lab:
        lab.put_config(VXLAN)
        peer = {"PublicIP": "172.17.8.177", "BackendType": "vxlan", "BackendData": {"VtepMAC": "02:00:00:00:00:77"}}
        lab.etcd.put("/coreos.com/network/subnets/11.0.77.0-24", json.dumps(peer))
        yield lab


@pytest.mark.sample("script", 3)
@pytest.mark.parametrize("script", BROKEN.values(), ids=BROKEN)
def test_failures_of_the_default_rules_never_stop_a_daemon(host: Host, tmp_path: Path, script: str | None) -> None:
    daemon = host.start_daemon("-iface=eth1", "-iptables-resync=1", env=broken(tmp_path, script))
    daemon.wait_ready(5)
    if script not in (_HANGS, "exit 0"):
        daemon.wait_for_log("Failed to check iptables tables? ")
        time.sleep(2.5)  # two more checks
        assert daemon.log().count("Failed to check iptables table") == 1
    host.run("sh", "-c", "ip link del flannel.1")  # the repair loop is not delayed
    daemon.wait_for_log("flannel.1 was removed", 15)
    wait_for(lambda: "flannel.1" in host.run("ip", "link").stdout, 15, "the device")
    assert daemon.process.poll() is None
    start = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - start < 2
    assert not host.run("pgrep", "-f", _HANGS, check=False).stdout


@pytest.mark.parametrize("kind", ["missing", "failing", "printing garbage"])
def test_masquerading_rules_that_cannot_be_added_fail_the_start(host: Host, tmp_path: Path, kind: str) -> None:
    daemon = host.start_daemon("-iface=eth1", "-ip-masq", env=broken(tmp_path, BROKEN[kind]))
    assert daemon.process.wait(10) == 1
    last = daemon.log().splitlines()[-1]
    assert re.search(r"\] -ip-masq cannot put its rules: .*iptables-save.*; without -ip-masq none are needed$", last)
    daemon.close()


def test_a_command_that_appears_later_is_used(host: Host, tmp_path: Path) -> None:
    flavour = Flavour(host, "nft")
    environment = broken(tmp_path, "exit 4")
    daemon = host.start_daemon("-iface=eth1", "-iptables-resync=1", env=environment)
    daemon.wait_for_log("Failed to check iptables tables? .*exit code 4")
    broken(tmp_path, None)
    daemon.wait_for_log("iptables tables are checked again")
    rule = f"-A {DROP} -d 172.17.8.177/32 -j DROP"
    wait_for(lambda: rule in flavour.rules("mangle"), DEADLINE, "the peer's rule")
    daemon.stop()


# What the rules prevent


def send(node: Container | Host, *arguments: str) -> subprocess.Popen[str]:
    """Start datagrams.py, and return when all datagrams were sent."""
    process = node.popen(sys.executable, DATAGRAMS, *arguments)
    assert process.stdout is not None
    assert process.stdout.readline() == "sent\n"
    return process


def received(process: subprocess.Popen[str]) -> int:
    return int(process.communicate(timeout=20)[0])


def started(lab: Lab, host: Host, *flags: str) -> tuple[Daemon, Container]:
    daemon = host.start_daemon("-iface=eth1", "-ip-masq", *flags)
    daemon.wait_ready()
    return daemon, host.add_container()


def answers(source: Container, target: Container) -> int:
    text = source.run("ping", "-c5", "-i0.2", "-W1", str(target.address), check=False).stdout
    return int(re.findall(r"(\d+) received", text)[0])


@pytest.mark.parametrize(("config", "port"), [(UDP, 8285), (VXLAN, 8472)])
def test_a_container_cannot_send_datagrams_as_its_host(config: str, port: int) -> None:
    """Datagrams are dropped even if an operator accepts all forwarded packets; those to other hosts or ports pass."""
    with Lab(hosts=2) as lab:
        lab.put_config(config)
        one, two = lab.hosts
        for table in ("filter", "mangle", "raw"):
            one.run("iptables", "-t", table, "-A", "PREROUTING" if table == "raw" else "FORWARD", "-j", "ACCEPT")
        daemon, container = started(lab, one)
        other = two.start_daemon("-iface=eth1")
        wait_connected([daemon, other])
        wait_for(lambda: f"-A {DROP} -d {two.public_ip}/32 -j DROP" in one.run("iptables-save").stdout, 5, "the rule")
        own = "udp and src 172.17.8.101 and length < 100"
        with Capture(two, "eth1", own) as wire:
            for source_port in (port, 4000):
                send(container, str(source_port), str(two.public_ip), str(port), str(port), "0")
            send(container, "4001", str(two.public_ip), "9999", "9999", "0")
            assert ".9999: UDP, length 28" in wire.readline()
        with Capture(lab.switch, "br0", own) as wire:
            send(container, str(port), OUTSIDE, str(port), str(port), "0")
            assert f" > {OUTSIDE}." in wire.readline()
        assert answers(container, two.add_container()) == 5


@pytest.mark.sample("masquerades", 1)
@pytest.mark.parametrize("config", [UDP, VXLAN])
@pytest.mark.parametrize("masquerades", ["-ip-masq", "an operator"])
def test_a_container_that_used_our_ports_first_changes_nothing(config: str, masquerades: str) -> None:
    """Neither the source port of our datagrams changes, nor the receiver of a peer's; stateful rules accept them.

    The container sends before the peer has a lease, and to all ports from which a kernel may send VXLAN.
    """
    port = 8285 if config is UDP else 8472
    ports = ("8285", "8285") if config is UDP else ("32768", "60999")
    with Lab(hosts=2) as lab:
        lab.put_config(config)
        one, two = lab.hosts
        flags = ["-iptables-resync=1", f"-ip-masq={'true' if masquerades == '-ip-masq' else 'false'}"]
        daemon, container = started(lab, one, *flags)
        if masquerades == "an operator":
            one.run(
                "iptables", "-t", "nat", "-A", "POSTROUTING", "-s", NETWORK, "!", "-o", "docker0", "-j", "MASQUERADE"
            )
            container.run("ping", "-c1", "-W1", OUTSIDE)
        wait_for(lambda: ZONE in one.run("iptables-save", "-t", "raw").stdout, 5, "the zone")
        for rule in (
            ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"],
            ["-p", "udp", "--dport", "8472", "-j", "ACCEPT"],  # vxlan never has an answer
            ["-p", "udp", "-j", "DROP"],
        ):
            one.run("iptables", "-A", "INPUT", *rule)
        thief = send(container, str(port), str(two.public_ip), *ports, "8")
        other, peer = started(lab, two, *flags)
        wait_connected([daemon, other])
        with Capture(two, "eth1", f"udp and src {one.public_ip} and dst port {port}") as wire:
            assert answers(container, peer) == 5
            if config is UDP:  # udp has one source port; the kernel has many for vxlan
                assert f" {one.public_ip}.8285 > " in wire.readline()
        assert answers(peer, container) == 5
        send(container, "8286", str(two.public_ip), str(port), str(port), "0")
        assert answers(peer, container) == 5
        assert received(thief) == 0
