"""The kernel carries packets of the udp backend: beside the loop, without the daemon, and not where it must not."""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from collections.abc import Callable
from itertools import permutations

import pytest
from lab import Host, Lab, wait_for
from lab.lab import wait_connected
from support.datapaths import (
    AUTO,
    KERNEL,
    LOOP,
    POLICY,
    RULES,
    announces,
    by_kernel,
    containers,
    index_of,
    pings,
    programs,
    start,
    state,
    status,
    wait_until_it_sends,
)
from support.overlay import Capture, transfer, unbroken_stream

pytestmark = pytest.mark.usefixtures("root")

MIB = 1 << 20
# 200 pings, 20 a second.
PINGS, PING_PAUSE = 200, 0.05


@pytest.fixture
def pair(make_lab: Callable[..., Lab]) -> Lab:
    """Return two hosts without daemons."""
    lab = make_lab(hosts=2)
    lab.put_config()
    return lab


# Traffic


def test_three_hosts_reach_each_other_in_the_kernel(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=3)
    lab.put_config()
    daemons = start(lab, KERNEL, KERNEL, KERNEL)
    inside = containers(lab)
    for host in lab.hosts:
        assert status(host) == {"datapath": "kernel", "cause": ""}
    with by_kernel(*lab.hosts):
        for source, sink in permutations(inside, 2):
            transfer(source, sink, str(sink.address), 4 * MIB)
            assert pings(source, sink) == 3
    for daemon in daemons:  # without a process, only the kernel is left
        daemon.kill()
    for source, sink in permutations(inside, 2):
        transfer(source, sink, str(sink.address), 4 * MIB)
        assert pings(source, sink) == 3


@pytest.mark.parametrize("flags", [(KERNEL, LOOP), (LOOP, AUTO)], ids=["kernel-loop", "loop-auto"])
def test_a_host_with_the_loop_gets_finished_checksums(pair: Lab, flags: tuple[tuple[str, ...], ...]) -> None:
    start(pair, *flags)
    one, other = containers(pair)
    for source, sink in ((one, other), (other, one)):
        transfer(source, sink, str(sink.address), 8 * MIB)
        assert pings(source, sink) == 3
    assert [status(host)["datapath"] for host in pair.hosts] == ["loop" if each == LOOP else "kernel" for each in flags]


def test_a_host_whose_own_filter_accepts_datagrams_has_the_loop(pair: Lab) -> None:
    """The programs would not see them, and the loop would get unfinished checksums."""
    accepting = "tc filter add dev eth1 ingress prio 10 protocol all bpf bytecode '1,6 0 0 0' da"
    pair.hosts[1].run("sh", "-ec", f"tc qdisc add dev eth1 clsact; {accepting}")
    daemon = pair.hosts[1].start_daemon(*AUTO)
    start_one = pair.hosts[0].start_daemon(*KERNEL)
    wait_connected([start_one, daemon])
    wait_for(lambda: status(pair.hosts[1])["cause"], 10, "the cause")
    cause = "eth1 has a filter of another program at its ingress: bpf, priority 10"
    assert status(pair.hosts[1]) == {"datapath": "loop", "cause": cause}
    one, other = containers(pair)
    for source, sink in ((one, other), (other, one)):
        transfer(source, sink, str(sink.address), 4 * MIB)


def test_a_peer_changes_its_datapath_under_tcp(pair: Lab) -> None:
    _, daemon = start(pair, KERNEL, KERNEL)
    one, other = containers(pair)
    with unbroken_stream(one, other, 2_000_000) as stream:
        for flags in (LOOP, KERNEL):
            assert daemon.stop() == 0
            daemon = pair.hosts[1].start_daemon(*flags)
            daemon.wait_ready()
            stream.wait_for_more()
            wait_for(lambda flags=flags: announces(pair.hosts[1]) is (flags == KERNEL), 10, "the lease")  # type: ignore[misc]
            stream.wait_for_more()
        wait_until_it_sends(daemon, pair.hosts[1])
        with by_kernel(*pair.hosts):
            stream.wait_for_more()


def test_counters_have_the_packets_of_the_kernel(pair: Lab) -> None:
    start(pair, KERNEL, KERNEL)
    one, other = containers(pair)
    assert pings(one, other, 20) == 20
    text = pair.hosts[0].run(sys.executable, "-m", "flannelpy", "status", "-json").stdout
    [network] = json.loads(text)["networks"]
    [peer] = network["peers"]
    for traffic_of in (peer["traffic"], network["backend"]["carried"]):
        assert traffic_of["packets_out"] >= 20
        assert traffic_of["packets_in"] >= 20
        assert traffic_of["bytes_in"] >= 20 * 84
        assert time.time() - traffic_of["heard_at"] < 10


# The daemon ends


def test_a_killed_daemon_loses_no_packet_and_the_next_one_adopts_its_device(pair: Lab) -> None:
    daemons = start(pair, KERNEL, KERNEL)
    one, other = containers(pair)
    assert pings(one, other) == 3  # the hosts know each other's MAC
    host = pair.hosts[0]
    before, index = programs(host), index_of(host, "flannel0")
    with unbroken_stream(one, other, 2_000_000) as stream, by_kernel(*pair.hosts):
        ping = one.popen("ping", "-nq", f"-c{PINGS}", f"-i{PING_PAUSE}", "-W1", str(other.address))
        stream.wait_for_more()
        daemons[0].kill()
        stream.wait_for_more(4 * MIB)
        assert programs(host) == before
        daemons[0] = host.start_daemon(*KERNEL)
        daemons[0].wait_ready()
        stream.wait_for_more(4 * MIB)
        text, _ = ping.communicate(timeout=60)
    assert f"{PINGS} received" in text
    assert index_of(host, "flannel0") == index
    after = programs(host)
    assert all(after.values())
    assert all(after[device] != before[device] for device in before)
    assert daemons[0].stop() == 0
    assert "flannel0" not in host.run("ip", "link").stdout


def test_a_daemon_that_is_stopped_removes_everything(pair: Lab) -> None:
    before = [state(host) for host in pair.hosts]
    daemons = start(pair, KERNEL, AUTO)
    assert all(state(host) != was for host, was in zip(pair.hosts, before, strict=True))
    assert [daemon.stop() for daemon in daemons] == [0, 0]
    assert [state(host) for host in pair.hosts] == before


@pytest.mark.parametrize("how", ["cleanup", "loop"])
def test_what_a_killed_daemon_left_is_removed(pair: Lab, how: str) -> None:
    host = pair.hosts[0]
    before = state(host)
    for daemon in start(pair, KERNEL, KERNEL):
        daemon.kill()
    assert all(programs(host).values())
    if how == "cleanup":
        host.run(sys.executable, "-m", "flannelpy", "-cleanup")
    else:
        daemon = host.start_daemon(*LOOP)
        daemon.wait_ready()
        assert not any(programs(host).values())
        assert not announces(host)
        assert daemon.stop() == 0
    assert state(host) == before


def test_a_dead_host_sends_nothing_after_the_end_of_its_lease(pair: Lab) -> None:
    daemons = start(pair, (*KERNEL, "-subnet-lease-ttl=8s"), KERNEL)
    one, other = containers(pair)
    assert pings(one, other) == 3
    daemons[0].kill()
    assert pings(one, other) == 3
    own = str(pair.hosts[0].public_ip)
    wait_for(lambda: own not in str(pair.leases()), 15, "the end of the lease")
    time.sleep(3)
    with Capture(pair.switch, "br0", f"udp and src {own}") as capture:
        assert pings(one, other, 20) == 0
        pair.hosts[0].run(sys.executable, "-c", _SEND_ONE)
        line = capture.readline()
        assert ".9 " not in line.split(">")[0]
        assert "> 172.17.8.1.9:" in line


# A datagram from the host itself: the first of the capture, if the overlay has sent none.
_SEND_ONE = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'', ('172.17.8.1', 9))"


def test_a_living_host_sends_after_the_end_of_its_lease_while_etcd_is_away(pair: Lab) -> None:
    start(pair, (*KERNEL, "-subnet-lease-ttl=8s"), KERNEL)
    one, other = containers(pair)
    pair.etcd.kill()
    time.sleep(10)
    assert status(pair.hosts[0])["datapath"] == "kernel"
    before = carried(pair.hosts[0])
    assert pings(one, other, 20) == 20
    assert carried(pair.hosts[0]) >= before + 20


def carried(host: Host) -> int:
    """Return the packets that the outgoing program has sent."""
    text = host.run("tc", "-s", "filter", "show", "dev", "eth1", "ingress").stdout
    assert "flannel_incomin" in text
    text = host.run(sys.executable, "-m", "flannelpy", "status", "-json", check=False).stdout
    return int(json.loads(text)["networks"][0]["backend"]["carried"]["packets_out"])


# What forbids it


@pytest.mark.parametrize(("flags", "letter"), [(AUTO, "W"), (KERNEL, "E")], ids=["auto", "kernel"])
def test_an_xfrm_policy_stops_the_programs_at_once(pair: Lab, flags: tuple[str, ...], letter: str) -> None:
    daemon, _ = start(pair, flags, KERNEL)
    one, other = containers(pair)
    assert pings(one, other) == 3
    host = pair.hosts[0]
    host.run(*POLICY.split())
    wait_for(lambda: not programs(host)["flannel0"], 0.5, "the removal of the outgoing program")
    assert programs(host)["eth1"]  # peers still send what only a kernel takes
    assert pings(one, other) == 0
    wait_for(lambda: not announces(host), 5, "the lease without the kernel")
    wait_for(lambda: not programs(host)["eth1"], 10, "the removal of the incoming program")
    assert re.search(rf"^{letter}.*Datapath switched from kernel to loop: .*XFRM", daemon.log(), re.MULTILINE)
    assert "XFRM" in str(status(host)["cause"])
    host.run("ip", "xfrm", "policy", "flush")
    assert pings(one, other) == 3  # by the loop


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_that_may_match_our_datagrams_forbids_the_programs(pair: Lab, rule: str) -> None:
    host = pair.hosts[0]
    host.run(*RULES[rule][0].split())
    daemon = host.start_daemon(*KERNEL)
    assert daemon.process.wait(30) == 1
    assert re.search(r"cannot carry packets in the kernel \(-datapath=kernel\): .* may match", daemon.log())
    assert "READY=1" not in daemon.notified
    daemon = host.start_daemon(*AUTO)
    daemon.wait_ready()
    assert not any(programs(host).values())
    assert daemon.log().count("Datapath loop:") == 1
    assert not announces(host)


def test_a_rule_that_concerns_no_peer_forbids_nothing(pair: Lab) -> None:
    """Also at a start, when the peers are not known yet."""
    host = pair.hosts[0]
    host.run("iptables", "-A", "INPUT", "-p", "udp", "-s", "10.9.9.9", "-j", "DROP")
    start(pair, KERNEL, KERNEL)
    one, other = containers(pair)
    assert pings(one, other) == 3
    with by_kernel(*pair.hosts):
        assert pings(one, other, 60) == 60
    assert status(host) == {"datapath": "kernel", "cause": ""}


# Not available


def without(host: Host, name: str, *before: str) -> str:
    """Return a Python that a shell starts by the last of these commands, as a prefix."""
    script = host.run_dir / name
    *commands, prefix = before
    script.write_text("\n".join(["#!/bin/sh -e", *commands, f'exec {prefix} {shlex.quote(sys.executable)} "$@"', ""]))
    script.chmod(0o755)
    return f"/run/{name}"


# BPF_LD|W|ABS nr; JEQ bpf; RET ERRNO|EPERM; RET ALLOW.  Source: linux/seccomp.h, linux/filter.h.
_SECCOMP = """
import ctypes, os, struct, sys
number = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
code = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in code))
filter = struct.pack("HP", len(code), ctypes.addressof(program))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.c_char_p(filter), 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


def seccomp(host: Host) -> str:
    (host.run_dir / "seccomp.py").write_text(_SECCOMP)
    return f"{shlex.quote(sys.executable)} /run/seccomp.py"


@pytest.fixture(params=["CAP_BPF", "seccomp"])
def powerless(request: pytest.FixtureRequest, pair: Lab) -> str:
    """Return a Python on the first host that may not load BPF programs."""
    host = pair.hosts[0]
    prefix = "setpriv --bounding-set=-bpf,-sys_admin" if request.param == "CAP_BPF" else seccomp(host)
    return without(host, "powerless", prefix)


def test_a_host_that_may_not_load_programs_has_the_loop_and_one_line(pair: Lab, powerless: str) -> None:
    host, other_host = pair.hosts
    daemon = host.start_daemon(*AUTO, python=powerless)
    wait_connected([daemon, other_host.start_daemon(*KERNEL)])
    one, other = containers(pair)
    transfer(one, other, str(other.address), 4 * MIB)
    transfer(other, one, str(one.address), 4 * MIB)
    [line] = [line for line in daemon.log().splitlines() if "atapath" in line]
    assert "Datapath loop: " in line
    assert "Operation not permitted" in line
    assert status(host) == {"datapath": "loop", "cause": line.partition("Datapath loop: ")[2]}
    assert daemon.stop() == 0


def test_a_host_that_must_have_programs_and_may_not_load_them_does_not_start(pair: Lab, powerless: str) -> None:
    host = pair.hosts[0]
    before = state(host)
    daemon = host.start_daemon(*KERNEL, python=powerless)
    assert daemon.process.wait(30) == 1
    assert re.search(r"^E.*cannot carry packets in the kernel \(-datapath=kernel\): .*", daemon.log(), re.MULTILINE)
    assert state(host) == before


def test_the_loop_imports_nothing_of_bpf(pair: Lab) -> None:
    daemon = pair.hosts[0].start_daemon(*LOOP, env={"PYTHONVERBOSE": "1"})
    daemon.wait_ready()
    assert "import 'flannelpy.backend.udp.backend'" in daemon.log()
    for module in ("linux.bpf", "udp.datapath", "fast_path", "bypass_guard", "descriptor_store"):
        assert not re.search(rf"import '[\w.]*{module}", daemon.log()), module
