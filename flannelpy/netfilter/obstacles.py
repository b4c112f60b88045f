"""What keeps packets between containers of different hosts from being forwarded, and cannot be cured here.  Pure.

Each table of iptables and each base chain of nftables decides for itself: an ACCEPT in one ends no other.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from ipaddress import IPv4Network
from typing import NamedTuple

from flannelpy.netfilter.iptables_listing import Table
from flannelpy.netfilter.nft_listing import BaseChain
from flannelpy.netfilter.packet_filter import Addresses, Drop, Packets, Verdict, Walk

# Docker's nftables backend, since version 29.
_DOCKER_TABLE = "docker-bridges"
_FIREWALLD_TABLE = "firewalld"
# CNI plugins may give each container a device of its own.
_NAMED_DEVICES = 3
# The tables whose rules accept what Docker and a firewall drop.
_ACCEPTING_TABLES = ("filter", "raw")
_HOOKS = ("PREROUTING", "FORWARD", "POSTROUTING")


class Obstacle(NamedTuple):
    """``is_certain``: packets are lost, not only perhaps."""

    text: str
    is_certain: bool


class Traffic(NamedTuple):
    """The packets of a network that a host forwards.

    ``devices`` lead to other hosts, ``bridges`` to containers, if there are any yet.  ``masquerading``: the device by
    which packets come with the public IP of their host, if there is one.  ``accepting``: our chain that accepts them.
    """

    network: IPv4Network
    subnet: IPv4Network
    devices: tuple[str, ...]
    masquerading: str
    bridges: tuple[str, ...]
    accepting: str

    def ways(self, hook: str, *, is_tracked: bool) -> Iterator[tuple[list[Packets], bool]]:
        """The ways of packets through a hook, and whether packets certainly take them.

        A way is made of the packets by each device: a rule for one device matches all of these, or none.
        """
        others, own, anywhere = Addresses(self.network, outside=self.subnet), Addresses(self.subnet), Addresses(None)
        is_routed = hook.upper() != "PREROUTING"
        leaving = anywhere if hook.upper() == "POSTROUTING" else own  # Docker may have masqueraded them
        to_bridge = self.bridges if is_routed else None
        yield [Packets(others, own, (device,), to_bridge, is_tracked) for device in self.devices], True
        to_devices = [(device,) for device in self.devices] if is_routed else [None]
        yield [Packets(leaving, others, self.bridges, to_device, is_tracked) for to_device in to_devices], True
        if self.masquerading:
            yield [Packets(anywhere, own, (self.masquerading,), to_bridge, is_tracked)], False


Search = Generator[None, None, list[Obstacle]]


def of_table(table: Table, program: str, traffic: Traffic) -> Search:
    """What drops packets in one table of iptables; it pauses after each rule.  ``program``: what lists the table."""
    own = {
        name: Verdict.ACCEPT if name == traffic.accepting and table.name in _ACCEPTING_TABLES else Verdict.CONTINUE
        for name in table.own
    }
    chains = table.rules(own)
    found: list[Obstacle] = []
    for hook in _HOOKS:
        if hook not in chains:
            continue
        policy = f"-P {hook} DROP" if table.policies.get(hook) == "DROP" else ""
        is_tracked = table.name != "raw"
        drop = yield from _search(traffic, hook, lambda packets: Walk(chains, packets), hook, policy, is_tracked)
        if drop:
            found.append(_of_rule(drop, table.name, program))
    return found


def of_base_chain(chain: BaseChain, traffic: Traffic) -> Search:
    """What drops packets in a base chain of nftables; it pauses after each rule."""
    policy = "its policy" if chain.policy == "drop" else ""
    drop = yield from _search(
        traffic, chain.hook, lambda packets: Walk(chain.chains, packets), chain.name, policy, chain.is_tracked
    )
    return [_of_chain(chain, drop, traffic)] if drop else []


def _search(
    traffic: Traffic, hook: str, walk: Callable[[Packets], Walk], chain: str, policy: str, is_tracked: bool
) -> Generator[None, None, Drop | None]:
    """The drop of all ways through a hook that is most certain; of a way, it is if no device lets packets pass."""
    worst: Drop | None = None
    for way, is_taken in traffic.ways(hook, is_tracked=is_tracked):
        drops = []
        for packets in way:
            drops.append((yield from walk(packets).run(chain, policy)))  # noqa: PERF401 - a comprehension cannot yield
        is_certain = is_taken and all(drop and drop.is_certain for drop in drops)
        drop = next(filter(None, drops), None)
        if drop and (worst is None or (is_certain and not worst.is_certain)):
            worst = Drop(drop.by, is_certain)
    return worst


def _of_rule(drop: Drop, table: str, program: str) -> Obstacle:
    effect = "drops" if drop.is_certain else "may drop"
    listed = f"table {table}, listed by {program}"
    return Obstacle(
        f"The iptables rule '{drop.by}' {effect} packets between containers of different hosts ({listed}); remove it, "
        "or accept these packets before it",
        drop.is_certain,
    )


def of_sysctls(blocked: Sequence[str], *, is_host_forwarding: bool) -> str:
    """The kernel forwards no packets that come in by the devices ``blocked``; empty without any."""
    if not blocked:
        return ""
    if not is_host_forwarding:
        return (
            "net.ipv4.ip_forward is 0, so this host forwards no packets of containers; set it: "
            "sysctl -w net.ipv4.ip_forward=1"
        )
    named, others = blocked[:_NAMED_DEVICES], len(blocked[_NAMED_DEVICES:])
    more = f" and {others} more devices" if others else ""
    # sysctl(8) takes a slash for a dot in the name of a device.
    settings = " ".join(f"net.ipv4.conf.{device.replace('.', '/')}.forwarding=1" for device in named)
    return (
        f"Forwarding is 0 for {', '.join(named)}{more}, so this host does not forward packets that come in there; set "
        f"it: sysctl -w {settings}"
    )


def _of_chain(chain: BaseChain, drop: Drop, traffic: Traffic) -> Obstacle:
    effect = "drops" if drop.is_certain else "may drop"
    if chain.table == _DOCKER_TABLE:
        remedy = "Docker runs with its nftables backend; start dockerd with --firewall-backend=iptables"
    elif chain.table == _FIREWALLD_TABLE:
        add = f"firewall-cmd --permanent --zone=trusted --add-source={traffic.network}"
        remedy = f"tell firewalld: {add} && firewall-cmd --reload"
    else:
        remedy = f"accept them: {_accept_command(chain, traffic)}"
    return Obstacle(
        f"The nftables chain {chain} {effect} packets between containers of different hosts after iptables "
        f"({drop.by}); {remedy}",
        drop.is_certain,
    )


def _accept_command(chain: BaseChain, traffic: Traffic) -> str:
    """Commands to paste, quoted for a shell.  By ``masquerading``, packets come with any host's public IP."""
    matches = [f"ip saddr {traffic.network} ip daddr {traffic.network}"]
    if traffic.masquerading:
        matches.append(f"iifname {traffic.masquerading} ip daddr {traffic.subnet}")
    return " && ".join(f"nft insert rule {chain} {match} accept" for match in matches)
