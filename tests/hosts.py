"""What tests look at on hosts that must go on undisturbed: addresses, leases, logs, resources."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from ipaddress import IPv4Network
from pathlib import Path

from lab import Daemon, Host, Lab

from flannelpy.subnet import env_file

_LOCAL_OVERLAY_ADDRESS = re.compile(r"\|-- (11\.\S+)\n\s+/32 host LOCAL")


def subnets_in_use(daemon: Daemon) -> set[IPv4Network]:
    """Those that flannel0 and docker0 of the daemon's host have their addresses from.

    Read where it costs no process: /proc/PID/net/fib_trie is of that process's network namespace.
    """
    addresses = _LOCAL_OVERLAY_ADDRESS.findall(Path(f"/proc/{daemon.pid}/net/fib_trie").read_text())
    return {IPv4Network(f"{address}/24", strict=False) for address in addresses}


def subnet_in_file(host: Host) -> IPv4Network | None:
    """The subnet that the host's subnet file tells, read from outside."""
    return env_file.previous_subnet(host.run_dir / "flannel/subnet.env")


def leased_again(lab: Lab) -> bool:
    """Whether each host's subnet is in etcd as its own, for a limited time."""
    held = {lease["key"].rpartition("/")[2]: lease for lease in lab.leases()}
    for host in lab.hosts:
        lease = held.get(str(subnet_in_file(host)).replace("/", "-"), {})
        if "ttl" not in lease or json.loads(lease["value"])["PublicIP"] != str(host.public_ip):
            return False
    return True


def next_hops(daemon: Daemon) -> int:
    """To how many hosts the daemon can send, as it has told systemd."""
    found = [re.search(r"next hops: (\d+)", line) for line in list(daemon.notified)]
    return int([match for match in found if match][-1][1]) if any(found) else 0


def assert_in_order(daemons: Sequence[Daemon]) -> None:
    """None has ended, changed its subnet, lost the route to another one's even for a moment, or logged a traceback."""
    subnets = {str(subnet_in_file(daemon.host)) for daemon in daemons}
    for daemon in daemons:
        log = daemon.log()
        assert daemon.process.poll() is None, log
        assert "Traceback" not in log, log
        assert len(set(re.findall(r"Subnet lease acquired: (\S+)", log))) == 1, log
        assert not subnets.intersection(re.findall(r"Subnet removed: (\S+)", log)), log
