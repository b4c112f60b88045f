"""What tests check on hosts that must not be disturbed: addresses, leases, logs, resources."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, NamedTuple

from lab import Daemon, Host, Lab, wait_for

from flannelpy.host import subnet_file
from flannelpy.marks import ROUTE_PROTOCOL

# Of a device, as ip names them; a VXLAN device alone has all.
_SETTINGS = ("id", "local", "link", "port", "learning", "address", "mtu", "txqlen")
_LOCAL_OVERLAY_ADDRESS = re.compile(r"\|-- (11\.\S+)\n\s+/32 host LOCAL")


def subnets_in_use(daemon: Daemon) -> set[IPv4Network]:
    """Those that docker0 and our device, if there is one, of the daemon's host have their addresses from.

    Read where it costs no process: /proc/PID/net/fib_trie is of that process's network namespace.
    """
    addresses = _LOCAL_OVERLAY_ADDRESS.findall(Path(f"/proc/{daemon.pid}/net/fib_trie").read_text())
    return {IPv4Network(f"{address}/24", strict=False) for address in addresses}


def ways(host: Host) -> set[str]:
    """All kernel state for packets to peers: devices, routes into the network, neighbours, FDB entries."""
    routes = [line for line in _shown(host, "ip", "route") if line.startswith("11.") and " dev docker0 " not in line]
    # The network's route is the kernel's, or ours where it was restored.
    routes = [route.replace(f" proto {ROUTE_PROTOCOL} scope link", " proto kernel scope link") for route in routes]
    neighbours = [f"neighbour {line}" for line in _shown(host, "ip", "neighbour", "show", "nud", "permanent")]
    fdb_entries = [f"fdb {line}" for line in _shown(host, "bridge", "fdb", "show") if " dst " in line]
    return {*_devices(host), *routes, *neighbours, *fdb_entries}


def _devices(host: Host) -> Iterator[str]:
    """Ours, each with all that it should have."""
    for link in json.loads(host.run("ip", "-j", "-d", "address").stdout):
        name, info = link["ifname"], link.get("linkinfo", {})
        if name.startswith("flannel") and info.get("info_kind") != "veth":  # the fast path's, without addresses
            settings = info.get("info_data", {}) | link
            words = [f"{key} {settings[key]}" for key in _SETTINGS if key in settings]
            flags = [flag for flag in ("UP", "LOWER_UP") if flag in link["flags"]]
            addresses = [f"{one['local']}/{one['prefixlen']}" for one in link["addr_info"] if one["family"] == "inet"]
            accept_local = _shown(host, "cat", f"/proc/sys/net/ipv4/conf/{name}/accept_local")
            yield " ".join([name, info.get("info_kind", ""), *words, *flags, *addresses, "accept_local", *accept_local])


class Belongings(NamedTuple):
    """What a host has of its daemon, and everything of the same kinds that is others'."""

    subnet: IPv4Network | None
    files: set[str]
    devices: set[str]
    ways: set[str]
    routes: list[str]
    rules: list[str]


def belongings(host: Host) -> Belongings:
    """All as it is now; a TUN device is known by its name alone, since each run makes one of its own."""
    links = json.loads(host.run("ip", "-j", "-d", "link").stdout)
    return Belongings(
        subnet_in_file(host),
        {path.name for path in (host.run_dir / "flannel").glob("*") if path.suffix != ".lock"},  # never removed
        {link["ifname"] if _is_tun(link) else "{ifindex} {ifname} {address}".format_map(link) for link in links},
        ways(host),
        sorted(_shown(host, "ip", "-4", "route", "show", "table", "all")),
        [rule for table in ("filter", "nat", "mangle", "raw") for rule in _shown(host, "iptables", "-t", table, "-S")],
    )


def _is_tun(link: dict[str, Any]) -> bool:
    return bool(link.get("linkinfo", {}).get("info_kind") == "tun")


def _shown(host: Host, *argv: str) -> list[str]:
    """What a command prints; nothing where what it was to show is not there."""
    return [line.strip() for line in host.run(*argv, check=False).stdout.splitlines()]


def traces(prefix: str) -> list[str]:
    """What of a lab is to be seen from outside: namespaces, directory, mounts, processes."""
    found = [str(path) for where in ("/run", "/run/netns") for path in Path(where).glob(f"{prefix}*")]
    found += [line for line in Path("/proc/self/mounts").read_text().splitlines() if prefix in line]
    for command_line in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            if prefix in command_line.read_text():
                found.append(command_line.read_text())
    return found


def subnet_in_file(host: Host) -> IPv4Network | None:
    """The subnet in the host's subnet file, read from outside."""
    return subnet_file.previous_subnet(host.run_dir / "flannel/subnet.env")


def own_leases(host: Host) -> list[dict[str, Any]]:
    """Those with the host's public IP, as etcd shows them."""
    return [lease for lease in host.lab.leases() if json.loads(lease["value"])["PublicIP"] == str(host.public_ip)]


def leased_again(lab: Lab) -> bool:
    """Whether each host's subnet is in etcd as its own, for a limited time."""
    held = {lease["key"].rpartition("/")[2]: lease for lease in lab.leases()}
    for host in lab.hosts:
        lease = held.get(str(subnet_in_file(host)).replace("/", "-"), {})
        if "ttl" not in lease or json.loads(lease["value"])["PublicIP"] != str(host.public_ip):
            return False
    return True


def next_hops(daemon: Daemon) -> int:
    """The number of next hops that the daemon has reported to systemd."""
    found = [re.search(r"next hops: (\d+)", line) for line in list(daemon.notified)]
    return int([match for match in found if match][-1][1]) if any(found) else 0


def freeze(daemon: Daemon) -> None:
    """Have the daemon sleep, and return when it does."""
    daemon.process.send_signal(signal.SIGSTOP)
    wait_for(lambda: Path(f"/proc/{daemon.pid}/stat").read_text().split()[2] == "T", 15, "the daemon to sleep")


def thaw(daemon: Daemon) -> None:
    """Resume the daemon."""
    daemon.process.send_signal(signal.SIGCONT)


@contextmanager
def asleep(daemon: Daemon) -> Iterator[None]:
    """The daemon sleeps until the block ends."""
    freeze(daemon)
    try:
        yield
    finally:
        thaw(daemon)


def assert_in_order(daemons: Sequence[Daemon]) -> None:
    """None has ended, changed its subnet, lost the route to another one's even for a moment, or logged a traceback."""
    subnets = {str(subnet_in_file(daemon.host)) for daemon in daemons}
    for daemon in daemons:
        log = daemon.log()
        assert daemon.process.poll() is None, log
        assert "Traceback" not in log, log
        assert len(set(re.findall(r"Subnet lease acquired: (\S+)", log))) == 1, log
        assert not subnets.intersection(re.findall(r"Subnet removed: (\S+)", log)), log
