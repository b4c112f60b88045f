"""Run the firewall's check on the iptables tables of this namespace, and measure the turns of its event loop.

Print the longest turn in milliseconds of thread CPU time, the number of repairs, and the number of flannelpy's rules.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from ipaddress import IPv4Address, IPv4Network

from flannelpy.datapath.traffic import Datagrams, Forwarding
from flannelpy.host.firewall import Firewall
from flannelpy.netfilter.network_rules import NetworkRules
from flannelpy.netfilter.obstacles import Traffic
from flannelpy.registry.base import PERMANENT
from flannelpy.subnet.lease import Lease, LeaseAttrs
from flannelpy.subnet.lease_table import LeaseAdded

NETWORK = IPv4Network("11.0.0.0/8")
SUBNET = IPv4Network("11.255.0.0/24")
MASQUERADE = f"FLANNEL-M-{NETWORK}"
TRAFFIC = Traffic(NETWORK, SUBNET, ("flannel0", "eth1"), "eth1", ("docker0",))
UDP = Datagrams("flannel0", 8285, 8285, accepts_local=True)


class Carrier:
    """The parts of a backend that the rules need."""

    datagrams = UDP
    forwarding = Forwarding(["flannel0", "eth1"], "eth1", masquerading="eth1")


class MeasuredLoop(asyncio.SelectorEventLoop):
    """An event loop that records its longest turn."""

    longest = 0.0

    def _run_once(self) -> None:
        start = time.thread_time()
        super()._run_once()  # type: ignore[misc]
        self.longest = max(self.longest, time.thread_time() - start)


async def check(firewall: Firewall, peers: int) -> None:
    """Add the rules, and lose them three times."""
    rules = NetworkRules(
        NETWORK, SUBNET, IPv4Address("172.17.8.101"), Carrier(), (), is_masqueraded=True, is_forwarded=True
    )
    subnets = NETWORK.subnets(new_prefix=24)
    first = IPv4Address("172.20.0.1")
    leases = [LeaseAdded(Lease(next(subnets), LeaseAttrs(first + number), PERMANENT, 1, 1)) for number in range(peers)]
    repaired = asyncio.Event()
    firewall.add("", rules, repaired.set)
    firewall.apply("", leases[:-1])
    firewall.watch("", TRAFFIC, lambda: None)
    gc.collect()
    gc.disable()  # as the daemon does, which collects young objects between its checks
    await measure_from_now()
    await firewall.masquerade("")
    checks = asyncio.create_task(firewall.run())
    for table, chain in (("nat", MASQUERADE), ("nat", MASQUERADE), ("mangle", "FORWARD")):
        flush = await asyncio.create_subprocess_exec("iptables", "-t", table, "-F", chain)
        await flush.wait()
        firewall.apply("", leases[-1:])
        await repaired.wait()
        repaired.clear()
    checks.cancel()


async def measure_from_now() -> None:
    """Reset the longest turn: earlier turns do not belong to the check."""
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, MeasuredLoop)
    loop.longest = 0.0


def main() -> None:
    firewall = Firewall(1)
    loop = MeasuredLoop()
    loop.run_until_complete(check(firewall, int(sys.argv[1])))
    print(f"{loop.longest * 1000:.2f} {firewall.repairs['']}")


if __name__ == "__main__":
    main()
