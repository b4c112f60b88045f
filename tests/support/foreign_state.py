"""Random state of other programs in a host's kernel, and a snapshot that shows whether it changed.

Everything lies on devices that are not flannelpy's.  Many entries look like flannelpy's: its device names, its rule
priority, chains that begin with FLANNEL, routes for subnets that are leased.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Network

from lab import Host

#: What the snapshot lists, each with the command for it.  Permanent entries only: the kernel learns the others.
SECTIONS = {
    "link": "ip -j -d link",
    "address": "ip -j address",
    "route": "ip -4 -d route show table all",
    "route6": "ip -6 -d route show table all",
    "nexthop": "ip -d nexthop",
    "rule": "ip -4 -d rule",
    "rule6": "ip -6 -d rule",
    "neighbour": "ip neighbour show nud permanent; ip neighbour show proxy",
    "fdb": "bridge fdb show",
    "sysctl": "grep -H . /proc/sys/net/ipv4/conf/*/accept_local /proc/sys/net/ipv4/conf/*/rp_filter",
    "nft": "nft -s list table inet operator",
    "file": "grep -H . /run/flannel/operator.env",
} | {
    f"{tool} {table}": f"{tool}-save -t {table}"
    for tool in ("iptables", "iptables-legacy")
    for table in ("raw", "mangle", "nat", "filter")
}
#: Where the order of the lines means something.
_ORDERED = ("rule", "rule6", "nft")
_MARK = "=== "
_SCRIPT = "\n".join(f"echo '{_MARK}{name}'; {{ {command}; }} 2>/dev/null" for name, command in SECTIONS.items())
# What the kernel changes by itself.
_STATE_FLAGS = re.compile(r" (linkdown|dead|offload|trap|rt_offload)\b| expires \d+sec")
_COUNTERS = re.compile(r"^:(\S+ \S+) \[\d+:\d+\]$|^\[\d+:\d+\] ")
_LINK_KEYS = ("ifindex", "ifname", "mtu", "txqlen", "address", "master", "link", "ifalias", "group")
_LINK_FLAGS = ("UP", "NOARP", "PROMISC", "MULTICAST", "POINTOPOINT")
_INFO_KEYS = ("id", "local", "port", "learning", "type", "pi", "vnet_hdr", "persist", "mode")

Snapshot = Mapping[str, Sequence[str]]


def snapshot(host: Host) -> Snapshot:
    """All that there is of each kind, one line for each entry, without counters and timers."""
    sections: dict[str, list[str]] = {}
    name = ""
    for line in host.run("sh", "-c", _SCRIPT, check=False).stdout.splitlines():
        if line.startswith(_MARK):
            name = line.removeprefix(_MARK)
            sections[name] = []
        else:
            sections[name].append(line.rstrip())
    return {name: list(_normal(name, lines)) for name, lines in sections.items()}


def _normal(name: str, lines: Sequence[str]) -> Iterable[str]:
    if name == "link":
        return _links(json.loads("".join(lines) or "[]"))
    if name == "address":
        return _addresses(json.loads("".join(lines) or "[]"))
    if name.startswith("iptables"):
        return _rules(lines)
    if name == "route6":
        # The kernel puts these for each device, when it comes up.
        lines = [line for line in lines if " proto kernel " not in line and "ff00::/8" not in line]
    if name == "fdb":
        lines = [line for line in lines if "permanent" in line and not line.startswith(("33:33:", "01:00:5e:"))]
    if name == "sysctl":
        # A device that comes gets lines of its own.
        lines = [line for line in lines if not re.search(r"/conf/flannel\.1/", line)]
    normal = [_STATE_FLAGS.sub("", line).strip() for line in lines]
    return normal if name in _ORDERED else sorted(normal)


def _links(links: Sequence[Mapping[str, object]]) -> Iterator[str]:
    for link in links:
        words = [f"{key} {link[key]}" for key in _LINK_KEYS if key in link]
        flags = [flag for flag in _LINK_FLAGS if flag in str(link.get("flags"))]
        info = link.get("linkinfo")
        if isinstance(info, dict):
            data = info.get("info_data", {})
            words += [str(info.get("info_kind")), *(f"{key} {data[key]}" for key in _INFO_KEYS if key in data)]
        yield " ".join([*words, *flags])


def _addresses(links: Sequence[Mapping[str, object]]) -> Iterator[str]:
    for link in links:
        found = link.get("addr_info")
        assert isinstance(found, list)
        for one in found:
            if one["family"] == "inet" or one["scope"] == "global":
                yield f"{link['ifname']} {one['local']}/{one['prefixlen']} {one.get('label')} {one['scope']}"


def _rules(lines: Sequence[str]) -> Iterator[str]:
    """The listing without the lines of an unused table."""
    for line in lines:
        plain = _COUNTERS.sub(lambda found: f":{found[1]}" if found[1] else "", line)
        if plain.startswith(("#", "*", "COMMIT")) or re.fullmatch(r":[A-Z]+ ACCEPT", plain):
            continue
        yield plain


def missing(before: Snapshot, now: Snapshot) -> list[str]:
    """What is no longer there, and what is there in another order."""
    found = []
    for name, lines in before.items():
        lost = Counter(lines) - Counter(now[name])
        found += [f"{name}: {line}" for line in lost.elements()]
        if not lost and only(now[name], Counter(lines)) != list(lines):
            found.append(f"{name}: another order: {now[name]}")
    return found


def added(before: Snapshot, now: Snapshot) -> list[str]:
    """What is there that was not."""
    return [f"{name}: {line}" for name in now for line in (Counter(now[name]) - Counter(before[name])).elements()]


def only(lines: Sequence[str], wanted: Counter[str]) -> list[str]:
    """Those of the lines that are wanted, in their order."""
    left = Counter(wanted)
    found = []
    for line in lines:
        if left[line] > 0:
            left[line] -= 1
            found.append(line)
    return found


def with_additions(foreign: Snapshot, before: Snapshot, after: Snapshot) -> Snapshot:
    """The foreign state after an operator has added the difference between ``before`` and ``after``."""
    return {
        name: only(lines, Counter(foreign[name]) + (Counter(lines) - Counter(before[name])))
        for name, lines in after.items()
    }


class Operator:
    """Configures a host at random: commands that the kernel refuses change nothing."""

    def __init__(self, host: Host, rng: random.Random, networks: Sequence[IPv4Network], own: Sequence[IPv4Network]):
        """``networks`` are those that flannelpy may get, ``own`` the host's subnets in them."""
        self._host = host
        self._rng = rng
        self._networks = networks
        self._own = own
        self._number = 0

    def settle_in(self) -> None:
        """Devices, and then everything that lies on them."""
        self._ip(self._devices())
        self.add(60)

    def add(self, count: int) -> None:
        """So many entries of any kind."""
        kinds = (self._route,) * 8 + (self._rule,) * 3 + (self._address, self._neighbour, self._proxy, self._route6)
        self._ip([self._rng.choice(kinds)() for _ in range(count)])
        self._run(self._fdb() for _ in range(count // 10 + 1))
        self._run(self._iptables() for _ in range(count // 3 + 1))

    def _ip(self, commands: Iterable[str]) -> None:
        """Each in a process of its own, because ip -batch ends at the first one that makes no sense."""
        self._run(f"ip {command}" for command in commands)

    def _run(self, commands: Iterable[str]) -> None:
        self._host.run("sh", "-c", "\n".join(f"{command} 2>/dev/null" for command in commands), check=False)

    def _devices(self) -> list[str]:
        own = [f"{subnet[1]}/{subnet.prefixlen}" for subnet in self._own]
        look_alikes = [
            ["link add flannel.7 type vxlan id 7 dev eth1 dstport 8472 nolearning", "address add {} dev flannel.7"],
            ["link add flannel5 type bridge"],
            ["tuntap add flannel3 mode tun", "address add {} dev flannel3"],
            ["tuntap add tap9 mode tap"],
            ["link add flannel.99 type bridge"],
            ["link add vxlan1 type vxlan id 1 dev eth1 dstport 4789", "address add {} dev vxlan1"],
            ["link add flannel type bridge", "link set flannel alias 'flannelpy of an operator'"],
        ]
        obstacles = [
            ["link add flannel0 type bridge", "address add {} dev flannel0"],
            ["tuntap add flannel0 mode tun"],
            ["link add flannel.1 type bridge", "address add {} dev flannel.1"],
            ["link add flannel.1 type vxlan id 1 dev eth1 dstport 8472", "address add {} dev flannel.1"],
        ]
        chosen = self._rng.sample(look_alikes, 4) + self._rng.sample(obstacles, self._rng.choice((0, 0, 1)))
        commands = [
            "link add docker0 type bridge",
            f"address add {self._rng.choice(own)} dev docker0",
            "link add net0 type bridge",
            "address add 192.0.2.1/24 dev net0",
            "link add veth0 type veth peer name veth1",
            "link set veth1 master docker0",
            *(command.format(f"{self._address_in(self._network())}/32") for group in chosen for command in group),
            "nexthop add id 10 via 172.17.8.5 dev eth1",
            "nexthop add id 11 via 172.17.8.6 dev eth1",
            "nexthop add id 12 group 10/11",
        ]
        names = re.findall(r"^(?:link|tuntap) add (\S+)", "\n".join(commands), re.MULTILINE)
        return [*commands, *(f"link set {name} up" for name in names)]

    def _network(self) -> IPv4Network:
        """Mostly one that flannelpy may get, or our subnet in it."""
        others = (IPv4Network("10.200.0.0/16"), IPv4Network("192.0.2.0/24"), IPv4Network("203.0.113.0/24"))
        return self._rng.choice([*self._networks, *self._networks, *self._own, *others])

    def _address_in(self, network: IPv4Network) -> str:
        return str(network[self._rng.randrange(network.num_addresses)])

    def _destination(self) -> IPv4Network:
        """A network itself, one of its subnets, or what reaches beyond it."""
        network = self._network()
        longest = self._rng.choice((network.prefixlen, network.prefixlen - 1, network.prefixlen + 1, 24, 26, 30, 32))
        return IPv4Network((int(network[self._rng.randrange(network.num_addresses)]), max(longest, 9)), strict=False)

    def _gateway(self) -> str:
        """Of hosts that lease nothing."""
        return self._rng.choice(
            (
                f"via 172.17.8.{self._rng.randrange(2, 99)} dev eth1",
                f"via 192.0.2.{self._rng.randrange(2, 99)} dev net0",
                f"via {self._address_in(self._own[0])} dev docker0 onlink",
                "dev docker0",
                "dev net0 scope link src 192.0.2.1",
                "dev eth1",
            )
        )

    def _route(self) -> str:
        rng = self._rng
        destination = self._destination()
        kind = rng.random()
        if kind < 0.2:
            way, destination_type = "", rng.choice(("blackhole", "unreachable", "prohibit", "throw")) + " "
        elif kind < 0.3:
            hops = (f"nexthop via 172.17.8.{rng.randrange(2, 99)} dev eth1 weight {weight}" for weight in (1, 2))
            way, destination_type = " ".join(hops), ""
        elif kind < 0.35:
            way, destination_type = f"nhid {rng.choice((10, 11, 12))}", ""
        else:
            way, destination_type = self._gateway(), ""
        words = [
            # In the main table never better than what flannelpy needs to reach etcd: that is not in these networks.
            f"route {rng.choice(('add', 'append', 'prepend'))} {destination_type}{destination} {way}",
            # A route of protocol boot is as good as any: none has the gateway of a lease.
            f"proto {rng.choice(('kernel', 'boot', 'static', 'ra', 'dhcp', 'bird', 'zebra', 'bgp', '84', '86'))}",
            rng.choice(("", "", "metric 50", "metric 100", "metric 4242")),
            rng.choice(("", "", "", "table 100", "table 200")),
            rng.choice(("", "", "", "", "tos 0x10", "mtu 1400") if not destination_type else ("",)),
        ]
        return " ".join(words)

    def _route6(self) -> str:
        return f"-6 route add 2001:db8:{self._rng.randrange(0x10000):x}::/48 dev net0 proto static"

    def _rule(self) -> str:
        rng = self._rng
        priority = rng.choice((100, 8284, 8285, 8285, 8285, 8286, 32000))
        action = rng.choice(("prohibit", "lookup 100", "lookup 200", "blackhole", "unreachable", "goto 32766"))
        # From addresses that are not the host's own, which would lose etcd.
        selector = f"from {self._destination()} to {self._destination()}"
        extra = rng.choice(("", "", "iif docker0", "fwmark 7", "tos 0x10", "protocol bird", "protocol 84"))
        return f"rule add {selector} {extra} priority {priority} {action}"

    def _address(self) -> str:
        device = self._rng.choice(("net0", "docker0", "veth0", "flannel5"))
        return f"address add {self._address_in(self._network())}/32 dev {device}"

    def _neighbour(self) -> str:
        device = self._rng.choice(("eth1", "net0", "docker0", "flannel.7"))
        address = self._rng.choice((self._address_in(self._network()), f"172.17.8.{self._rng.randrange(200, 250)}"))
        return f"neighbour add {address} lladdr {self._mac()} dev {device} nud permanent"

    def _proxy(self) -> str:
        return f"neighbour add proxy {self._address_in(self._network())} dev {self._rng.choice(('eth1', 'docker0'))}"

    def _mac(self) -> str:
        return "02:00:" + ":".join(f"{byte:02x}" for byte in self._rng.randbytes(4))

    def _fdb(self) -> str:
        rng = self._rng
        where = rng.choice((f"flannel.7 dst 172.17.8.{rng.randrange(2, 250)} self", "net0 self", "veth1 master"))
        return f"bridge fdb append {self._mac()} dev {where} permanent"

    def _iptables(self) -> str:
        """A chain, or a rule in one of those or in a chain that every table has."""
        rng = self._rng
        tool, table = (
            rng.choice(("iptables", "iptables", "iptables-legacy")),
            rng.choice(("raw", "mangle", "nat", "filter")),
        )
        chain = rng.choice(("FLANNELX", "FLANNEL", "flannel", "FLANNEL-OPERATOR", "DOCKER", "FLANNELPY_2"))
        head = f"{tool} -w -t {table}"
        if rng.random() < 0.3:
            hook = "PREROUTING" if table != "filter" else "FORWARD"
            return f"{head} -N {chain} && {head} -{rng.choice('AI')} {hook} -j {chain}"
        hook = {"nat": "POSTROUTING", "filter": "FORWARD"}.get(table, "PREROUTING")
        target = rng.choice(("RETURN", "ACCEPT") if table != "nat" else ("RETURN", "ACCEPT", "MASQUERADE"))
        where = rng.choice((chain, hook, hook))
        match = f"-s {self._other()} -d {self._other()}"
        extra = rng.choice(("", "", "-m comment --comment flannel", "-p udp -m udp --dport 8285"))
        return f"{head} -{rng.choice('AI')} {where} {match} {extra} -j {target}"

    def _other(self) -> str:
        """Of networks that flannelpy never gets: rules of a flanneld for its networks would be replaced."""
        return f"10.{self._rng.randrange(128, 256)}.0.0/{self._rng.choice((16, 20))}"
