"""The commands that ask a running daemon, against real ones: answers, exit codes, users, and hostile clients."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from lab import ETCD_PREFIX, Host, Lab, wait_for
from support.lateness import assert_no_packet_is_late, ended
from support.tenants import NETWORKS

FLAGS = ("-iface=eth1", "-iptables-resync=1")
PYTHON = (sys.executable, "-P")
SOCKET = "/run/flannel/control.sock"
NO_ACCOUNT = "61999"  # no user and no group has this ID


@pytest.fixture(scope="module")
def lab(root: None) -> Iterator[Lab]:
    """Two hosts with a container each; both daemons are ready."""
    with Lab(hosts=2) as lab:
        lab.put_config()
        lab.start_daemons(*FLAGS)
        for host in lab.hosts:
            host.add_container()
        yield lab


def command(host: Host, *argv: str, user: str = "", group: str = "") -> CompletedProcess[str]:
    """Run a command of flannelpy on a host, as root unless ``user`` or ``group`` are given."""
    as_user = [f"--reuid={user or 0}", f"--regid={group or user or 0}", "--clear-groups", "--bounding-set=-all"]
    setpriv = ["setpriv", *as_user, "--inh-caps=-all"] if user else []
    return host.run(*setpriv, *PYTHON, "-m", "flannelpy", *argv, check=False)


def document(host: Host, *flags: str) -> dict[str, Any]:
    """Return the JSON document of status."""
    found: dict[str, Any] = json.loads(command(host, "status", "-json", *flags).stdout)
    return found


def is_well(host: Host, *flags: str) -> bool:
    return command(host, "status", "-brief", *flags).returncode == 0


def failure(done: CompletedProcess[str]) -> tuple[int, str]:
    """Return exit code and error of a command that prints nothing else."""
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    return done.returncode, done.stderr.removeprefix("flannelpy: ").rstrip("\n")


# Answers


def test_the_text_of_a_host_that_is_well(lab: Lab) -> None:
    host, other = lab.hosts
    other.containers[0].ping_text(host.containers[0].address, 3)
    done = command(host, "status")
    print(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert re.fullmatch(
        rf"flannelpy \S+, PID {host.daemons[0].pid}, started .* ago, packet code (compiled|interpreted)", lines[0]
    )
    assert re.fullmatch(r"network: ready for \d+ .*", lines[1])
    text = "\n".join(lines)
    assert f"\n  subnet:    {host.subnet()} of 11.0.0.0/16, lease renewed " in text
    assert re.search(rf"\n  store:     etcd v2 at {re.escape(lab.etcd.url)}, answered .* ago\n", text)
    assert "\n  interface: eth1, 172.17.8.101, MTU 1500\n" in text
    assert "\n  backend:   udp, device flannel0, MTU 1472" in text
    assert "\n  peers:     1 reachable\n" in text
    [peer] = [line for line in lines if line.startswith(f"  {other.subnet()} ")]
    assert re.fullmatch(r"  \S+ +172\.17\.8\.102 +\d+ .* ago +252 B +252 B +\d s ago +reachable", peer)
    assert lines[-1] == "problems: none"


def test_brief_omits_the_peers(lab: Lab) -> None:
    host, other = lab.hosts
    done = command(host, "status", "--brief")
    assert done.returncode == 0
    assert str(host.subnet()) in done.stdout
    assert str(other.subnet()) not in done.stdout


def test_the_document_has_what_the_text_has(lab: Lab) -> None:
    host, other = lab.hosts
    found = document(host)
    assert (found["schema"], found["well"], found["problems"]) == (1, True, [])
    assert found["pid"] == host.daemons[0].pid
    [network] = found["networks"]
    assert (network["name"], network["state"], network["network"]) == ("", "ready", "11.0.0.0/16")
    assert network["subnet_file"] == "/run/flannel/subnet.env"
    assert network["lease"]["subnet"] == str(host.subnet())
    assert network["backend"]["type"] == "udp"
    [peer] = network["peers"]
    assert (peer["subnet"], peer["public_ip"]) == (str(other.subnet()), str(other.public_ip))
    assert peer["traffic"]["packets_in"] >= 0


def test_a_pipe_that_is_closed_early_is_no_error(lab: Lab) -> None:
    [host, _] = lab.hosts
    line = f"{sys.executable} -P -m flannelpy status | head -n 1"
    done = host.run("sh", "-c", line)
    assert done.stdout.startswith("flannelpy ")
    assert done.stderr == ""


def test_a_host_that_is_not_well_names_the_problem_and_a_remedy(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=1)
    [host] = lab.hosts
    daemon = host.start_daemon(*FLAGS)  # there is no config
    wait_for(lambda: command(host, "status").returncode == 1, 10, "the control socket")
    assert document(host)["well"] is False
    lab.put_config()
    daemon.wait_ready()
    assert command(host, "status").returncode == 0
    host.configure("link set eth1 down")
    wait_for(lambda: not document(host)["well"], 10, "the problem")
    done = command(host, "status")
    assert done.returncode == 1
    *_, problem, remedy = done.stdout.splitlines()
    assert problem == "problem: eth1 is down (external_interface)"
    assert remedy.startswith("  remedy: ")
    host.configure("link set eth1 up")
    wait_for(lambda: command(host, "status").returncode == 0, 10, "recovery")


def test_without_a_daemon_a_command_names_the_socket_and_what_to_do(lab: Lab) -> None:
    [host, _] = lab.hosts
    advice = "start flannelpy, or name its -subnet-file, or with -networks its -subnet-dir"
    for argv in (["status"], ["status", "-json"], ["log-level", "1"]):
        done = command(host, *argv, "-subnet-file=/run/other/subnet.env")
        assert failure(done) == (3, f"no daemon at /run/other/control.sock: {advice}")
    code, error = failure(command(host, "status", "-subnet-file=/run/flannel/subnet.env", "-subnet-dir=/run/flannel"))
    assert code == 2
    assert error.startswith("-subnet-file and -subnet-dir name two daemons")


def test_several_daemons_and_networks_are_distinguished(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=1)
    [host] = lab.hosts
    lab.put_config('{"Network":"11.0.0.0/16","Backend":{"Type":"vxlan","VNI":9,"Port":9999}}')
    for name, network in NETWORKS.items():
        config = f'{{"Network":"{network}","Backend":{{"Type":"host-gw"}}}}'
        lab.etcd_request("PUT", f"{ETCD_PREFIX}/{name}/config", value=config)
    one = host.start_daemon("-iface=eth1", "-subnet-file=/run/flannel/one.env")
    several = host.start_daemon("-iface=eth1", f"-networks={','.join(NETWORKS)}")
    for flag in "-subnet-file=/run/flannel/one.env", "-subnet-dir=/run/flannel/networks":
        wait_for(partial(is_well, host, flag), 20, f"the daemon with {flag}")
    found = document(host, "-subnet-file=/run/flannel/one.env")
    assert (found["pid"], [network["name"] for network in found["networks"]]) == (one.pid, [""])
    found = document(host, "-subnet-dir=/run/flannel/networks")
    assert (found["pid"], [network["name"] for network in found["networks"]]) == (several.pid, list(NETWORKS))
    text = command(host, "status", "-subnet-dir=/run/flannel/networks").stdout
    assert re.findall(r"^network (\w+): ready", text, re.MULTILINE) == list(NETWORKS)
    assert command(host, "status").returncode == 3  # no daemon has the default subnet file
    # The end of one removes its own socket only.
    assert one.stop() == 0
    assert command(host, "status", "-subnet-file=/run/flannel/one.env").returncode == 3
    assert command(host, "status", "-subnet-dir=/run/flannel/networks").returncode == 0


def test_a_daemon_replaces_the_socket_of_one_that_was_killed(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=1)
    lab.put_config()
    [host] = lab.hosts
    [first] = lab.start_daemons(*FLAGS)
    second = host.start_daemon(*FLAGS)  # which must not take the socket of the first
    assert second.process.wait(10) == 1
    assert "Failed to create the control socket" not in second.log()
    assert document(host)["pid"] == first.pid
    first.kill()
    assert (host.run_dir / "flannel/control.sock").is_socket()
    assert failure(command(host, "status"))[0] == 3
    third = host.start_daemon(*FLAGS)
    third.wait_ready()
    assert document(host)["pid"] == third.pid
    third.kill()
    done = command(host, "cleanup", f"-etcd-endpoints={lab.etcd.url}", "-iface=eth1")
    assert done.returncode == 0
    assert f"Removed {SOCKET}\n" in done.stderr
    assert [path.name for path in (host.run_dir / "flannel").iterdir()] == [".subnet.env.lock"]


def test_a_removed_socket_comes_back_and_a_foreign_file_in_its_place_is_named(lab: Lab) -> None:
    host = lab.hosts[0]
    daemon, path = host.daemons[-1], host.run_dir / "flannel/control.sock"
    path.unlink()
    path.touch()
    runs = f"flannelpy runs with the PID {daemon.pid}, but {SOCKET}"
    advice = "is not its control socket: remove that file, then flannelpy creates the socket"
    assert failure(command(host, "status")) == (3, f"{runs} {advice}")
    path.unlink()
    wait_for(partial(is_well, host), 10, "the socket")


def test_only_root_and_the_sockets_group_may_ask(lab: Lab) -> None:
    [host, _] = lab.hosts
    assert (host.run_dir / "flannel/control.sock").stat().st_mode & 0o777 == 0o660
    expected = f"not permitted to use {SOCKET}: run the command as root or as a member of the socket's group"
    for argv in (["status"], ["log-level", "1"]):
        assert failure(command(host, *argv, user=NO_ACCOUNT)) == (3, expected)
    host.run("chgrp", NO_ACCOUNT, SOCKET)
    assert command(host, "status", user="61998", group=NO_ACCOUNT).returncode == 0
    host.run("chgrp", "0", SOCKET)


def test_log_level_changes_what_is_logged(lab: Lab) -> None:
    """A detail of a repair is logged at level 1 only."""
    [host, _] = lab.hosts
    daemon = host.daemons[0]
    detail = re.compile(r"Restored FLANNEL\S+ in table filter")

    def repair(repairs: int) -> None:
        host.run("iptables", "-F", "FLANNEL-A-11.0.0.0/16")
        wait_for(lambda: document(host)["networks"][0]["firewall"]["repairs"] >= repairs, 10, "the repair")

    before = document(host)["networks"][0]["firewall"]["repairs"]
    repair(before + 1)
    assert not detail.search(daemon.log())
    done = command(host, "log-level", "1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "Changed the log level to 1, as flannelpy log-level asked" in daemon.log()
    repair(before + 2)
    daemon.wait_for_log(detail.pattern)
    assert command(host, "log-level", "0").returncode == 0
    details = len(detail.findall(daemon.log()))
    repair(before + 3)
    assert len(detail.findall(daemon.log())) == details


# Hostile clients

#: Arguments: the socket, the kind of client, a seed.  SIGTERM ends it; then it prints the number of connections.
HOSTILE = r"""
import contextlib, os, random, signal, socket, sys
path, kind, rng = sys.argv[1], sys.argv[2], random.Random(int(sys.argv[3]))
request, count, kept = b'{"get": "report", "peers": true}\n', 0, []
def connected():
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(1)
    sock.connect(path)
    return sock
signal.signal(signal.SIGTERM, lambda *_: os._exit(bool(print(count, flush=True))))  # SystemExit in a finalizer is lost
while True:
    with contextlib.suppress(OSError):
        sock = connected()
        count += 1
        if kind in ("idle", "half", "mute"):
            sock.send({"idle": b"", "half": request[:10], "mute": request}[kind])
            kept = [*kept, sock][-1000:]
            continue
        if kind == "bytes":
            sock.sendall(rng.randbytes(rng.choice([1, 100, 4096, 50000])) + b"\n")
        if kind in ("greedy", "leaver", "closed"):
            sock.send(request)
        if kind == "closed":
            sock.shutdown(socket.SHUT_WR)
        while kind in ("greedy", "closed") and sock.recv(65536):
            pass
        sock.close()
"""


@pytest.mark.sample("kind", 4)
@pytest.mark.timed
@pytest.mark.parametrize("kind", ["idle", "half", "bytes", "mute", "greedy", "leaver", "closed", "storm"])
def test_hostile_clients_delay_no_packet_and_leave_nothing(lab: Lab, kind: str) -> None:
    host, other = lab.hosts
    daemon = host.daemons[0]
    log, memory, files = daemon.log(), resident(daemon.pid), open_files(daemon.pid)
    with ended(host.popen("nice", "-n19", *PYTHON, "-c", HOSTILE, SOCKET, kind, "14")) as attack:
        assert_no_packet_is_late(host.containers[0], other.containers[0].address, attack)
        began = time.monotonic()
        done = command(host, "status")
        assert (done.returncode, done.stderr) == (0, ""), "while the attack lasts"
        print(f"status took {time.monotonic() - began:.1f} s")
        attack.terminate()
        output, error = attack.communicate(timeout=30)
    print(f"{kind}: {output.strip()} connections, {resident(daemon.pid) - memory} KB more")
    assert error == ""
    assert int(output) > 10
    assert without_counts(daemon.log()) == without_counts(log)
    assert resident(daemon.pid) - memory < 3000
    wait_for(lambda: open_files(daemon.pid) <= files + 2, 15, "the end of the connections")


def without_counts(log: str) -> list[str]:
    """Return the lines but for the counts of dropped packets, which the daemon logs once a minute."""
    return [line for line in log.splitlines() if "Dropped packets" not in line]


def resident(pid: int) -> int:
    """Return the resident memory of a process in KB."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
