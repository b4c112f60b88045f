"""Hosts of the udp backend that use the kernel or the loop, and what they have of it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, permutations

from lab import Container, Daemon, Host, Lab, wait_for
from lab.lab import wait_connected

from flannelpy.report import BackendReport
from flannelpy.serving.wire import decode_report

FLAGS = ("-iface=eth1", "-ip-masq")
KERNEL = (*FLAGS, "-datapath=kernel")
AUTO = (*FLAGS, "-datapath=auto")
LOOP = (*FLAGS, "-datapath=loop")
#: What a device does with super-packets of the loop and of the fast path.
SEGMENTATION = ("tso", "gso", "tx-udp-segmentation", "tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation")
# Until a host knows the MAC of its peer, the loop sends.
_FEW_PACKETS = 50
#: Adds an XFRM policy that blocks the datagrams which the loop sends.
POLICY = "ip xfrm policy add src 172.17.8.0/24 dst 172.17.8.0/24 proto udp dport 8285 dir out action block"
#: Rules that stop the datagrams of a loop: the commands that add and remove each.
RULES = {
    "INPUT": ("iptables -A INPUT -p udp --dport 8285 -j DROP", "iptables -F INPUT"),
    "OUTPUT": ("iptables -A OUTPUT -p udp --dport 8285 -j DROP", "iptables -F OUTPUT"),
    "POSTROUTING": (
        "iptables -t mangle -A POSTROUTING -p udp --dport 8285 -j DROP",
        "iptables -t mangle -F POSTROUTING",
    ),
    "native": (
        "nft table inet fw { chain out { type filter hook postrouting priority 0; udp dport 8285 drop; }; }",
        "nft delete table inet fw",
    ),
}


def start(lab: Lab, *flags: tuple[str, ...]) -> list[Daemon]:
    """Start a daemon with its flags on each host, and return when the hosts know each other and their datapaths."""
    daemons = [host.start_daemon(*each) for host, each in zip(lab.hosts, flags, strict=True)]
    wait_connected(daemons)
    by_programs = [number for number, each in enumerate(flags) if each != LOOP]
    for number in by_programs:
        _wait_until_attached(daemons[number], lab.hosts[number])
    for one, other in permutations(by_programs, 2):
        _wait_until_it_sends_to(lab.hosts[one], lab.hosts[other])
    return daemons


def wait_until_it_sends(daemon: Daemon, host: Host) -> None:
    """Wait until programs carry the packets between the host and all others whose leases announce the kernel."""
    _wait_until_attached(daemon, host)
    for other in host.lab.hosts:
        if other is not host and announces(other):
            _wait_until_it_sends_to(host, other)
            _wait_until_it_sends_to(other, host)


def _wait_until_attached(daemon: Daemon, host: Host) -> None:
    wait_for(lambda: announces(host), 10, f"the lease of {host.name}")
    wait_for(lambda: "Datapath kernel: " in daemon.log(), 20, f"the outgoing program of {host.name}")


def _wait_until_it_sends_to(host: Host, other: Host) -> None:
    """Wait until the host has read that the other's lease announces the kernel: its loop gets no packet to it then."""

    def passes_the_loop() -> bool:
        before = packets_of_loop(host, ["tx"])
        host.run("ping", "-c1", "-W0.2", str(other.subnet()[0]), check=False)
        return packets_of_loop(host, ["tx"]) > before

    wait_for(lambda: not passes_the_loop(), 10, f"{host.name} to send to {other.name} by its program")


@contextmanager
def by_kernel(*hosts: Host) -> Iterator[None]:
    """Assert that the programs of these hosts carry what is sent until the block ends, and the loops hardly a packet.

    More packets than ``_FEW_PACKETS`` must be sent, and the hosts must keep their devices.
    """
    before = [packets_of_loop(host) for host in hosts]
    yield
    passed = [packets_of_loop(host) - was for host, was in zip(hosts, before, strict=True)]
    assert max(passed) < _FEW_PACKETS, f"packets that passed the loops: {passed}"


def packets_of_loop(host: Host, ways: Sequence[str] = ("tx", "rx")) -> int:
    """Return how many packets the loop has got from the device (tx), and has given to it (rx)."""
    counters = ("cat", *(f"/sys/class/net/flannel0/statistics/{way}_packets" for way in ways))
    return sum(map(int, host.run(*counters).stdout.split()))


def announces(host: Host) -> bool:
    """Return whether the lease of a host announces the kernel."""
    values = [json.loads(lease["value"]) for lease in host.lab.leases()]
    return {str(host.public_ip): "kernel"} in [{value["PublicIP"]: value.get("Datapath")} for value in values]


def backend_report(host: Host) -> BackendReport:
    """Return what status reports of the backend."""
    text = host.run(sys.executable, "-m", "flannelpy", "status", "-json", check=False).stdout
    [network] = decode_report(json.loads(text)).networks
    assert network.backend
    return network.backend


def status(host: Host) -> dict[str, object]:
    """Return what status reports of the datapath."""
    backend = backend_report(host)
    return {"datapath": backend.datapath, "cause": backend.loop_cause}


def programs(host: Host) -> dict[str, str]:
    """Return the device and the external interface, each with the names of its programs."""
    found = {}
    for device, hook in (("flannel0", "egress"), ("eth1", "ingress")):
        text = host.run("tc", "filter", "show", "dev", device, hook, check=False).stdout
        found[device] = " ".join(re.findall(r" id (\d+) name flannel_", text))
    return found


def state(host: Host) -> list[str]:
    """Return devices, queueing disciplines and filters, without what differs from one moment to the next."""
    links = [f"link {link['ifname']}" for link in json.loads(host.run("ip", "-j", "link").stdout)]
    qdiscs = host.run("tc", "qdisc").stdout.splitlines()
    filters = [
        line
        for link in ("eth1", "flannel0")
        for hook in ("ingress", "egress")
        for line in host.run("tc", "filter", "show", "dev", link, hook, check=False).stdout.splitlines()
    ]
    return sorted([*links, *qdiscs, *filters])


def segment_before_the_device(host: Host) -> None:
    """Have the kernel cut super-packets for the external interface, so that datagrams cross the lab singly."""
    host.run("ethtool", "-K", "eth1", *chain.from_iterable((each, "off") for each in SEGMENTATION))


def index_of(host: Host, device: str) -> int:
    [link] = json.loads(host.run("ip", "-j", "link", "show", device).stdout)
    return int(link["ifindex"])


def containers(lab: Lab) -> list[Container]:
    return [host.add_container() for host in lab.hosts]


def pings(source: Container, sink: Container, count: int = 3) -> int:
    """Return how many of the pings are answered."""
    text = source.run("ping", "-nq", f"-c{count}", "-i0.05", "-W1", str(sink.address), check=False).stdout
    [answered] = re.findall(r"(\d+) received", text)
    return int(answered)
