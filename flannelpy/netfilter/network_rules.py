"""The iptables rules that flannelpy adds for a network.  Pure.

Each network has chains of its own, so that two networks, or two daemons, never replace each other's rules.
Counterpart: network/ipmasq.go, whose one chain FLANNEL is shared by all networks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple, Protocol

from flannelpy.datapath.traffic import Datagrams, Forwarding
from flannelpy.marks import CHAIN_PREFIX, CONNTRACK_ZONE, OWN_CHAIN
from flannelpy.netfilter import docker_chains, flanneld_rules
from flannelpy.netfilter.docker_chains import DOCKER_USER
from flannelpy.netfilter.ruleset import Chain, Jump, Listing, Place
from flannelpy.subnet.lease_table import LeaseAdded, LeaseEvent

MASQUERADE, DROP, ZONE, ACCEPT, OUTWARD = "M", "D", "Z", "A", "O"
_FORWARDING = "forwarding of packets of containers"
#: The kinds of chains that a network may have in each table, and what each is for.
KINDS = {
    "nat": {MASQUERADE: "masquerading of containers"},
    "mangle": {DROP: "the protection against datagrams that containers send in the name of this host"},
    "raw": {
        ZONE: "the protection of the ports of this host's datagrams",
        ACCEPT: "the way past Docker's rules for containers",
    },
    "filter": {ACCEPT: _FORWARDING, OUTWARD: _FORWARDING},
}
#: The chains of each table that have jumps to flannelpy's chains.
HOOKS = {
    "nat": ("POSTROUTING",),
    "mangle": ("FORWARD", "PREROUTING"),
    "raw": ("OUTPUT", "PREROUTING"),
    "filter": (DOCKER_USER, "FORWARD"),
}

_REPLY = "-m conntrack --ctstate RELATED,ESTABLISHED"


def chain_name(kind: str, network: IPv4Network) -> str:
    """Return the name of a chain: at most 28 characters, the limit of iptables-legacy."""
    return f"{CHAIN_PREFIX}-{kind}-{network}"


def purposes(table: str, chains: Iterable[str] = ()) -> str:
    """Return the purposes of these chains of a table, for a log line; without any, those of all its chains."""
    kinds = [name.split("-")[1] for name in chains] or KINDS[table]
    return ", and ".join(dict.fromkeys(KINDS[table][kind] for kind in kinds))


def names(table: str, network: IPv4Network) -> list[str]:
    """Return the names of all chains that a network may have in a table."""
    return [chain_name(kind, network) for kind in KINDS[table]]


def listing(
    table: str,
    names: Collection[str],
    networks: Collection[IPv4Network],
) -> Listing:
    """Return an empty listing that collects these chains, and the rules of flanneld for ``networks``."""
    foreign = docker_chains.NAMES if table == "filter" else ()
    found = Listing([*names, flanneld_rules.CHAIN], HOOKS[table], OWN_CHAIN, CHAIN_PREFIX, foreign)
    for network in networks:
        found.look_for(flanneld_rules.entering(network))
    return found


def masquerade_rules(network: IPv4Network) -> list[str]:
    """Return the rules for -ip-masq, in order.  Multicast is never masqueraded.

    RETURN, unlike flanneld's ACCEPT, lets packets reach the rules of other programs in POSTROUTING.
    """
    chain = chain_name(MASQUERADE, network)
    return [
        f"{chain} -s {network} -d {network} -j RETURN",
        f"{chain} -s {network} ! -d 224.0.0.0/4 -j MASQUERADE",
        f"{chain} ! -s {network} -d {network} -j MASQUERADE",
    ]


def masquerade(network: IPv4Network) -> Chain:
    """Return the chain that gives the host's address to packets that leave the network, or enter it."""
    rules = "".join(f"-A {rule}\n" for rule in masquerade_rules(network))
    return Chain(chain_name(MASQUERADE, network), rules.encode(), (Jump("POSTROUTING", ""),))


def drop_line(network: IPv4Network, peer: IPv4Address) -> bytes:
    """Return the rule in the chain of ``drop`` about one peer."""
    return f"-A {chain_name(DROP, network)} -d {peer}/32 -j DROP\n".encode()


def drop(
    network: IPv4Network, address: IPv4Address, sources: Iterable[IPv4Network], datagrams: Datagrams, lines: bytes
) -> Chain:
    """Return the chain that drops packets of containers that look like the datagrams of this host.

    ``lines``: one rule for each peer.
    ``sources`` are the networks of this daemon.  mangle FORWARD, because no ACCEPT in filter precedes it, because DNAT
    has already chosen the destination, and because the host's own datagrams never pass it.  The jump names our device,
    not the external interface: a host with several links may reach a peer by any of them.  A container with raw sockets
    may send with the address of another host, which no network has: rpfilter finds a packet that did not come from
    where its source is.
    """
    match = f"! -o {datagrams.device} -p udp -m udp --dport {datagrams.port}"
    forged = Jump("PREROUTING", f"! -d {address}/32 -p udp -m udp --dport {datagrams.port} -m rpfilter --invert")
    jumps = (*(Jump("FORWARD", f"-s {source} {match}") for source in sources), forged)
    return Chain(chain_name(DROP, network), lines, jumps)


def zone(network: IPv4Network, address: IPv4Address, datagrams: Datagrams) -> Chain:
    """Return the chain that gives the datagrams of this host a connection tracking zone of their own.

    If a masqueraded container used the ports of these datagrams first, the kernel would give them another source port,
    and would pass a peer's datagrams to the container.
    """
    name = chain_name(ZONE, network)
    ports = f"-p udp -m udp --dport {datagrams.port}"
    if datagrams.source_port:
        ports = f"-p udp -m udp --sport {datagrams.source_port} --dport {datagrams.port}"
    jumps = (Jump("OUTPUT", f"-s {address}/32 {ports}"), Jump("PREROUTING", f"-d {address}/32 {ports}"))
    return Chain(name, f"-A {name} -j CT --zone {CONNTRACK_ZONE}\n".encode(), jumps)


def accept_first_line(network: IPv4Network, peer: IPv4Address, device: str) -> bytes:
    """Return the rule in the chain of ``accept_first`` about one host that masquerades."""
    return f"-A {chain_name(ACCEPT, network)} -s {peer}/32 -i {device} -j ACCEPT\n".encode()


def accept_first(network: IPv4Network, subnet: IPv4Network, forwarding: Forwarding, lines: bytes) -> Chain:
    """Return the chain that accepts packets for containers here before a rule of Docker 28 in raw drops them.

    Each rule names a device that leads to the network, because a machine on another link could forge a source.
    ``lines``: one rule for each host that masquerades.
    """
    name = chain_name(ACCEPT, network)
    jumps = tuple(Jump("PREROUTING", f"-d {subnet} -i {device}") for device in forwarding.devices)
    return Chain(name, f"-A {name} -s {network} -j ACCEPT\n".encode() + lines, jumps)


def accept_forwarded_line(network: IPv4Network, subnet: IPv4Network, peer: IPv4Address, device: str) -> bytes:
    """Return the rule in the chain of ``accept_forwarded`` about one host that masquerades."""
    return f"-A {chain_name(ACCEPT, network)} -s {peer}/32 -d {subnet} -i {device} -j ACCEPT\n".encode()


def accept_forwarded(network: IPv4Network, subnet: IPv4Network, forwarding: Forwarding, lines: bytes) -> Chain:
    """Return the chain that accepts packets from containers of other hosts, under each policy of FORWARD.

    The jumps come last, so that rules of an operator, in DOCKER-USER and in FORWARD, decide first.  An ACCEPT in
    DOCKER-USER precedes Docker's isolation, so each rule names the subnet and a device that leads to other hosts.
    ``lines``: one rule for each host that masquerades.
    """
    name = chain_name(ACCEPT, network)
    rules = [f"-s {network} -d {subnet} -i {device} -j ACCEPT" for device in forwarding.devices]
    jumps = (Jump(DOCKER_USER, "", Place.LAST), Jump("FORWARD", "", Place.LAST))
    return Chain(name, _rules(name, rules) + lines, jumps)


def accept_outward(
    network: IPv4Network,
    subnet: IPv4Network,
    forwarding: Forwarding,
    others: Collection[IPv4Network] | None = None,
    devices: Iterable[str] = (),
) -> Chain:
    """Return the chain that accepts packets of containers here to other hosts, where the policy of FORWARD drops.

    Only FORWARD has a jump, which comes last: Docker accepts what leaves by its own bridge.  In DOCKER-USER, a
    container that Docker isolates could send into the network with a forged source.  Packets from the external
    interface and from the overlay are not accepted, because another machine on the link could forge a source as well,
    also inside a datagram of the backend.
    ``others``: with -ip-masq, the other networks of this daemon, whose containers are not outside; None without it.
    ``devices``: those by which packets come from peers in any network of this daemon.
    """
    name = chain_name(OUTWARD, network)
    answers = [f"-d {subnet} {_REPLY} -j ACCEPT"] if others is not None else []
    by_peers = dict.fromkeys((*forwarding.devices, *devices, forwarding.external))
    forged = [f"-i {device} -j RETURN" for device in by_peers]
    inside = [f"-s {subnet} -d {network} -o {device} -j ACCEPT" for device in forwarding.devices]
    if forwarding.masquerading:
        inside.append(f"-s {subnet} -o {forwarding.masquerading} {_REPLY} -j ACCEPT")
    outside = _outside(network, subnet, others) if others is not None else []
    rules = [*answers, *forged, *inside, *outside]
    return Chain(name, _rules(name, rules), (Jump("FORWARD", "", Place.LAST),))


def _outside(network: IPv4Network, subnet: IPv4Network, others: Iterable[IPv4Network]) -> list[str]:
    return [*(f"-s {subnet} -d {other} -j RETURN" for other in others), f"-s {subnet} ! -d {network} -j ACCEPT"]


def _rules(name: str, rules: Iterable[str]) -> bytes:
    """Return the rules of a chain as iptables-save prints them."""
    return "".join(f"-A {name} {rule}\n" for rule in rules).encode()


class Carrier(Protocol):
    """As much of a backend as the rules depend on; both may change while the backend runs."""

    @property
    def datagrams(self) -> Datagrams | None: ...  # noqa: D102

    @property
    def forwarding(self) -> Forwarding | None: ...  # noqa: D102


class _PeerRules(NamedTuple):
    """The rules about one public IP, one for each chain that has such rules."""

    drop: bytes
    accept_first: bytes
    accept_forwarded: bytes


class _PeerChain:
    """The rules of one chain about all peers: a rule for each public IP, however many leases the peer has.

    A lease event changes one entry here, since to collect the rules of 10,000 peers takes milliseconds.
    """

    def __init__(self) -> None:
        self._uses: dict[bytes, int] = {}  # leases by rule
        self._text: bytes | None = b""

    def add(self, rule: bytes) -> None:
        """Count a lease of the peer that the rule is about."""
        self._uses[rule] = self._uses.get(rule, 0) + 1
        self._text = None

    def remove(self, rule: bytes) -> None:
        """Drop a lease of the peer that the rule is about, and its rule with the last one."""
        self._uses[rule] -= 1
        if not self._uses[rule]:
            del self._uses[rule]
        self._text = None

    def text(self) -> bytes:
        """Return all rules, in the order in which the peers were added."""
        if self._text is None:
            self._text = b"".join(self._uses)
        return self._text


class _PeerChains(NamedTuple):
    """The rules about all peers, as the fields of ``_PeerRules``."""

    drop: _PeerChain
    accept_first: _PeerChain
    accept_forwarded: _PeerChain


class NetworkRules:
    """The chains that one network needs.

    ``address`` is the source of its datagrams, ``previous`` its networks in earlier runs, whose chains are removed.
    """

    def __init__(
        self,
        network: IPv4Network,
        subnet: IPv4Network,
        address: IPv4Address,
        carrier: Carrier,
        previous: Collection[IPv4Network],
        *,
        is_masqueraded: bool,
        is_forwarded: bool,
    ) -> None:
        """Take ``is_masqueraded`` from -ip-masq, and ``is_forwarded`` from -iptables-forward-rules."""
        self.network = network
        self.is_masqueraded = is_masqueraded
        self.networks = {network, *previous}
        self._is_forwarded = is_forwarded
        self._subnet = subnet
        self._address = address
        self._carrier = carrier
        self._peers: dict[IPv4Network, _PeerRules] | None = None  # of each lease; None until they are known
        self._about_peers = _PeerChains(_PeerChain(), _PeerChain(), _PeerChain())

    @property
    def datagrams(self) -> Datagrams | None:
        """The UDP datagrams of the backend, if it sends any."""
        return self._carrier.datagrams

    def apply(self, events: Sequence[LeaseEvent]) -> None:
        """Follow the leases of the peers; the first call brings all leases."""
        peers = self._peers = self._peers or {}
        for event in events:
            if isinstance(event, LeaseAdded):
                self._forget(peers, event.lease.subnet)
                rules = peers[event.lease.subnet] = self._rules_about(event.lease.attrs.public_ip)
                for chain, rule in zip(self._about_peers, rules, strict=True):
                    chain.add(rule)
            else:
                self._forget(peers, event.subnet)

    def _forget(self, peers: dict[IPv4Network, _PeerRules], subnet: IPv4Network) -> None:
        for chain, rule in zip(self._about_peers, peers.pop(subnet, ()), strict=False):
            chain.remove(rule)

    def _rules_about(self, peer: IPv4Address) -> _PeerRules:
        forwarding = self._forwarding()
        device = forwarding.masquerading if forwarding else ""
        return _PeerRules(
            drop_line(self.network, peer),
            accept_first_line(self.network, peer, device) if device else b"",
            accept_forwarded_line(self.network, self._subnet, peer, device) if device else b"",
        )

    @property
    def devices(self) -> Sequence[str]:
        """The devices by which packets come from peers."""
        forwarding = self._forwarding()
        return forwarding.devices if forwarding else ()

    def chains(
        self, table: str, networks: Sequence[IPv4Network], *, is_tracking: bool, devices: Sequence[str] = ()
    ) -> list[Chain]:
        """Return the chains that the network needs in one table.

        ``networks``, ``devices``: all of this daemon.  ``is_tracking``: whether the kernel tracks connections.
        """
        if table == "nat":
            return [masquerade(self.network)] if self.is_masqueraded else []
        if table == "mangle":
            return self._drop(networks)
        if table == "raw":
            return [*self._zone(is_tracking=is_tracking), *self._accept_first()]
        return self._accept_forwarded(networks, devices)

    def _drop(self, networks: Sequence[IPv4Network]) -> list[Chain]:
        datagrams = self.datagrams
        if datagrams is None or self._peers is None:
            return []
        about_peers = self._about_peers.drop.text()
        return [drop(self.network, self._address, networks, datagrams, about_peers)]

    def _zone(self, *, is_tracking: bool) -> list[Chain]:
        datagrams = self.datagrams
        return [zone(self.network, self._address, datagrams)] if datagrams and is_tracking else []

    def _accept_first(self) -> list[Chain]:
        forwarding = self._forwarding()
        if forwarding is None:
            return []
        about_peers = self._about_peers.accept_first.text()
        return [accept_first(self.network, self._subnet, forwarding, about_peers)]

    def _accept_forwarded(self, networks: Sequence[IPv4Network], devices: Sequence[str]) -> list[Chain]:
        forwarding = self._forwarding()
        if forwarding is None:
            return []
        about_peers = self._about_peers.accept_forwarded.text()
        others = [network for network in networks if network != self.network]
        return [
            accept_forwarded(self.network, self._subnet, forwarding, about_peers),
            accept_outward(self.network, self._subnet, forwarding, others if self.is_masqueraded else None, devices),
        ]

    def _forwarding(self) -> Forwarding | None:
        return self._carrier.forwarding if self._is_forwarded else None

    def leftovers(self, table: str) -> set[str]:
        """Return all chains that earlier runs may have left in one table."""
        return {name for network in self.networks for name in names(table, network)}

    def obsolete(self, table: str) -> set[str]:
        """Return ``leftovers``, without the list of peers while the leases are unknown."""
        found = self.leftovers(table)
        is_unknown = self._peers is None and self.datagrams is not None
        return found - ({chain_name(DROP, self.network)} if is_unknown else set())
