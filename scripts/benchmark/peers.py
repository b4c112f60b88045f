"""What the list of peers costs: throughput with 10 and with 1,000 leases (root, iperf3).

``PYTHONPATH=scripts python -P -m benchmark.peers`` prints for each the median of ten runs, taken in turn.  *overlay*:
TCP between containers of two hosts.  *strangers*: UDP datagrams of 1,400 bytes from a container to port 8285 of a host
that is no peer, the only packets that walk the whole list.
"""

from __future__ import annotations

import json
import statistics
from contextlib import ExitStack

from lab import ETCD_PREFIX, UNDERLAY, Container, Lab, Node, wait_connected, wait_for

ROUNDS = 10
SECONDS = "2"
SIZES = (10, 1000)
PORT = "8285"
KINDS = ("overlay", "strangers")


class Overlay:
    """Two hosts whose daemons know so many peers, most of which do not exist."""

    def __init__(self, labs: ExitStack, leases: int) -> None:
        self.lab = labs.enter_context(Lab(hosts=2))
        self.lab.put_config('{"Network":"11.0.0.0/8","SubnetLen":24,"SubnetMin":"11.200.0.0"}')
        for number in range(leases - 1):
            value = json.dumps({"PublicIP": f"172.18.{number // 250}.{number % 250 + 1}"})
            self.lab.etcd.put(f"{ETCD_PREFIX}/subnets/11.{number // 250}.{number % 250}.0-24", value)
        wait_connected([host.start_daemon("-iface=eth1", "-ip-masq") for host in self.lab.hosts])
        host = self.lab.hosts[0]
        wait_for(lambda: host.run("iptables-save", "-t", "mangle").stdout.count("-j DROP") == leases, 30, "the list")
        self.source, self.sink = (host.add_container() for host in self.lab.hosts)

    def gigabits(self, kind: str) -> float:
        """One run."""
        if kind == "overlay":
            return _gigabits(self.source, self.sink, str(self.sink.address))
        return _gigabits(self.source, self.lab.switch, str(UNDERLAY.ip), "-u", "-b", "0", "-l", "1400")


def _gigabits(source: Container, sink: Node, address: str, *flags: str) -> float:
    """Return what arrives, in Gbit/s, as iperf3 says."""
    server = sink.popen("iperf3", "-s", "-1", "-p", PORT)
    wait_for(lambda: f":{PORT} " in sink.run("ss", "-tln").stdout, 5, "iperf3")
    argv = ["iperf3", "-J", "-c", address, "-p", PORT, "-t", SECONDS, *flags]
    end = json.loads(source.run(*argv, timeout=60).stdout)["end"]
    server.wait(10)
    return float(end["sum_received"]["bits_per_second"]) / 1e9


def main() -> None:
    """Measure in turn, since the machine changes its speed."""
    found: dict[tuple[str, int], list[float]] = {(kind, size): [] for kind in KINDS for size in SIZES}
    with ExitStack() as labs:
        overlays = {size: Overlay(labs, size) for size in SIZES}
        for _ in range(ROUNDS):
            for kind, size in found:
                found[kind, size].append(overlays[size].gigabits(kind))
    for kind in KINDS:
        few, many = (statistics.median(found[kind, size]) for size in SIZES)
        print(f"{kind}: {few:.2f} Gbit/s with {SIZES[0]} leases, {many:.2f} with {SIZES[1]}: {many / few:.2f}")


if __name__ == "__main__":
    main()
