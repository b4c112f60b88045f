"""What keeps packets between containers of different hosts from being forwarded, and cannot be cured here.  Pure.

Each table of iptables and each base chain of nftables decides for itself: an ACCEPT in one ends no other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, summarize_address_range
from typing import NamedTuple

from flannelpy.netfilter import address_ranges, hooked_chains, network_rules
from flannelpy.netfilter.address_ranges import ANYWHERE, AddressRanges
from flannelpy.netfilter.iptables_listing import Table, Tables
from flannelpy.netfilter.network_rules import KINDS
from flannelpy.netfilter.nft_listing import BaseChain, NativeRules, NftTable
from flannelpy.netfilter.packet_filter import (
    ESTABLISHED,
    NEW,
    UNNAMED,
    Drop,
    Packets,
    Predicate,
    Rule,
    Verdict,
    Walk,
    destination,
    incoming,
    outgoing,
    source,
    states,
)

# Docker's nftables backend, since version 29.
_DOCKER_TABLE = "docker-bridges"
_FIREWALLD_TABLE = "firewalld"
# CNI plugins may give each container a device of its own.
_NAMED_DEVICES = 3
_NAMED_PEERS = 16
_HOOKS = ("PREROUTING", "FORWARD", "POSTROUTING")


class Obstacle(NamedTuple):
    """``text``: what drops packets, and what to do; ``name``: the same without that.

    ``is_certain``: packets are lost, not only perhaps.
    """

    text: str
    name: str
    is_certain: bool


class Way(NamedTuple):
    """The packets by each device that go the same way: a rule for one device matches all of these, or none.

    ``is_taken``: whether packets certainly go this way.
    """

    packets: list[Packets]
    is_taken: bool


class Traffic(NamedTuple):
    """The packets of a network that a host forwards.

    ``devices`` lead to other hosts, ``bridges`` to containers, if there are any yet.  ``masquerading``: the device by
    which packets come with the public IP of their host, if there is one.  ``peers``: the public IPs of the other hosts,
    if they are known.
    """

    network: IPv4Network
    subnet: IPv4Network
    devices: tuple[str, ...]
    masquerading: str
    bridges: tuple[str, ...]
    peers: AddressRanges | None = None

    def without_peers(self) -> Traffic:
        """Return what rarely changes: a peer that comes or goes alone is no reason to search at once."""
        return self._replace(peers=None)

    def ways(self, hook: str, state: str, *, is_tracked: bool) -> Iterator[Way]:
        """Yield the ways of packets through a hook.  As long as there is no bridge, packets go by an unnamed one."""
        others, own = address_ranges.between(self.network, self.subnet), address_ranges.of_networks(self.subnet)
        bridges = self.bridges or (UNNAMED,)
        is_routed = hook.upper() != "PREROUTING"
        leaving = ANYWHERE if hook.upper() == "POSTROUTING" else own  # Docker may have masqueraded them
        to_bridge = bridges if is_routed else None
        comes = [Packets(others, own, (device,), to_bridge, is_tracked, state) for device in self.devices]
        yield Way(comes, is_taken=True)
        to_devices = [(device,) for device in self.devices] if is_routed else [None]
        goes = [Packets(leaving, others, bridges, to_device, is_tracked, state) for to_device in to_devices]
        yield Way(goes, is_taken=True)
        hosts = ANYWHERE if self.peers is None else self.peers
        if self.masquerading and hosts:
            yield Way([Packets(hosts, own, (self.masquerading,), to_bridge, is_tracked, state)], is_taken=False)
            to_host = (self.masquerading,) if is_routed else None
            replies = [Packets(leaving, hosts, bridges, to_host, is_tracked, state)]
            yield from [Way(replies, is_taken=False)] if state == ESTABLISHED else []


Search = Generator[None, None, list[Obstacle]]


def searches(listings: Collection[Tables], nft_tables: Collection[NftTable], traffic: Traffic) -> Iterator[Search]:
    """Yield a search for what drops packets for each table; a table of iptables-nft is searched once."""
    for table, tables, native in hooked_chains.of_iptables(listings, nft_tables):
        yield of_table(table, tables, traffic, native)
    for chain in hooked_chains.of_nftables(listings, nft_tables, _HOOKS):
        yield of_base_chain(chain, traffic)


def of_table(table: Table, tables: Tables, traffic: Traffic, native: NativeRules | None = None) -> Search:
    """Find what drops packets in one table of iptables, with a pause after each rule.

    ``native``: the rules of the table as nft lists them, empty if they are not known; None for iptables-legacy.
    """
    chains = table.rules(native, _accepting(table.name, traffic) if tables.has_own_rules else {})
    found: list[Obstacle] = []
    for hook in _HOOKS:
        if hook not in chains:
            continue
        policy = f"-P {hook} DROP" if table.policies.get(hook) == "DROP" else ""
        ways = [
            way for state in (NEW, ESTABLISHED) for way in traffic.ways(hook, state, is_tracked=table.name != "raw")
        ]
        drop = yield from _search(ways, lambda packets: Walk(chains, packets), hook, policy)
        if drop:
            found.append(_of_rule(drop, table, tables))
    return found


def _accepting(table: str, traffic: Traffic) -> dict[str, list[Rule]]:
    """Return the rules of flannelpy's chains in a table that accept packets of this traffic, by chain."""
    network, subnet = map(address_ranges.of_networks, (traffic.network, traffic.subnet))
    comes = [_accept(source(network), destination(subnet), incoming([device])) for device in traffic.devices]
    goes = [_accept(source(subnet), destination(network), outgoing([device])) for device in traffic.devices]
    if traffic.masquerading:
        comes.append(_accept(destination(subnet), incoming([traffic.masquerading])))
        goes.append(_accept(source(subnet), outgoing([traffic.masquerading]), states([ESTABLISHED])))
    rules = {network_rules.ACCEPT: comes, network_rules.OUTWARD: goes}
    return {
        network_rules.chain_name(kind, traffic.network): rules[kind] for kind in KINDS.get(table, ()) if kind in rules
    }


def _accept(*conditions: Predicate) -> Rule:
    return Rule("", conditions, Verdict.ACCEPT)


def of_base_chain(chain: BaseChain, traffic: Traffic) -> Search:
    """Find what drops packets in a base chain of nftables, with a pause after each rule."""
    policy = "its policy" if chain.policy == "drop" else ""
    states = (NEW,) if chain.is_nat else (NEW, ESTABLISHED)
    ways = [way for state in states for way in traffic.ways(chain.hook, state, is_tracked=chain.is_tracked)]
    drop = yield from _search(ways, lambda packets: Walk(chain.chains, packets), chain.name, policy)
    if not drop:
        return []
    return [_of_chain(chain, drop._replace(is_certain=drop.is_certain and chain.is_active), traffic)]


def _search(
    ways: Iterable[Way], walk: Callable[[Packets], Walk], chain: str, policy: str
) -> Generator[None, None, Drop | None]:
    """Find the most certain drop of all ways; that of a way is certain if no device lets packets pass."""
    worst: Drop | None = None
    for way in ways:
        drops = []
        for packets in way.packets:
            drop = yield from walk(packets).run(chain, policy)
            if drop and drop.is_certain and (doubtful := _of_any_device(packets)) != packets:
                certain = yield from walk(doubtful).run(chain, policy)
                drop = drop._replace(is_certain=certain is not None and certain.is_certain)
            drops.append(drop)
        is_certain = way.is_taken and all(drop and drop.is_certain for drop in drops)
        drop = next(filter(None, drops), None)
        if drop and (worst is None or (is_certain and not worst.is_certain)):
            worst = Drop(drop.by, is_certain)
    return worst


def _of_any_device(packets: Packets) -> Packets:
    """Return the same packets; a bridge that is missing yet may have any name."""
    incoming, outgoing = (() if names == (UNNAMED,) else names for names in (packets.incoming, packets.outgoing))
    return packets._replace(incoming=incoming, outgoing=outgoing)


def _of_rule(drop: Drop, table: Table, tables: Tables) -> Obstacle:
    effect = "drops" if drop.is_certain else "may drop"
    listed = f"table {table.name}, listed by {tables.program}"
    return Obstacle(
        f"The iptables rule '{drop.by}' {effect} packets between containers of different hosts ({listed}); remove it, "
        "or accept these packets before it",
        hooked_chains.name_of_rule(drop.by, table, tables),
        drop.is_certain,
    )


def of_sysctls(blocked: Sequence[str], *, is_host_forwarding: bool) -> str:
    """Return what to do if the kernel forwards no packets from the devices ``blocked``; empty without any."""
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
        remedy = f"have firewalld accept them: {_firewalld_command(traffic)} && firewall-cmd --reload"
    else:
        remedy = f"accept them: {_accept_command(chain, traffic)}"
    return Obstacle(
        f"The nftables chain {chain} {effect} packets between containers of different hosts, also those that iptables "
        f"accepts ({drop.by}); {remedy}",
        hooked_chains.name_of_chain(chain, drop.by),
        drop.is_certain,
    )


def _firewalld_command(traffic: Traffic) -> str:
    """By ``masquerading``, packets come with the public IP of any peer."""
    peers = list(traffic.peers or ()) if traffic.masquerading else []
    sources = [str(network) for first_and_last in peers[:_NAMED_PEERS] for network in _networks(*first_and_last)]
    more = " --add-source=PUBLIC-IP (of each other host)" if len(peers) > _NAMED_PEERS else ""
    added = " ".join(f"--add-source={each}" for each in (traffic.network, *sources))
    return f"firewall-cmd --permanent --zone=trusted {added}{more}"


def _networks(first: int, last: int) -> Iterator[IPv4Network]:
    return summarize_address_range(IPv4Address(first), IPv4Address(last))


def _accept_command(chain: BaseChain, traffic: Traffic) -> str:
    """Commands to paste, quoted for a shell.  By ``masquerading``, packets come and go with any host's public IP."""
    matches = [f"ip saddr {traffic.network} ip daddr {traffic.network}"]
    if traffic.masquerading and chain.hook == "postrouting":
        matches.append(f"oifname {traffic.masquerading} ip daddr {traffic.network}")
    elif traffic.masquerading:
        matches.append(f"iifname {traffic.masquerading} ip daddr {traffic.subnet}")
    return " && ".join(f"nft insert rule {chain} {match} accept" for match in matches)
