"""Judges the parts of this host: interface, daemon, device, bridges, forwarding, masquerading.  Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network

from flannelpy.check.codes import Code
from flannelpy.check.lines import Level, Line, Link, ok
from flannelpy.check.observations import DeviceSeen, FileSeen, HostSeen, RulesSeen
from flannelpy.check.plan import Plan
from flannelpy.check.verdicts import found
from flannelpy.diagnosis import ProblemCode, problems
from flannelpy.netfilter import obstacles
from flannelpy.report import DaemonReport, NetworkReport
from flannelpy.rtnetlink.links import Address
from flannelpy.rtnetlink.links import Link as LinkOfHost

_DOCKER0 = "docker0"
_CONTAINER_BRIDGES = (_DOCKER0, "cni0")
_NAMED = 4
_TUNNELS = ("tun", "vxlan")
# The part of the limit of tracked connections at which the next load may exceed it.
_FULL = 0.95
_ALARMS = frozenset({Code.ETCD_FULL, Code.ETCD_CORRUPT})
# The lines that name the cause of what the daemon reports, by the code of its problem.
_NAMED_BY: dict[ProblemCode, frozenset[Code]] = {
    ProblemCode.STORE_SILENT: frozenset({Code.ETCD_SILENT}),
    ProblemCode.CONFIG_MISSING: frozenset({Code.CONFIG_MISSING}),
    ProblemCode.CONFIG_INVALID: frozenset({Code.CONFIG_INVALID}),
    ProblemCode.CONFIG_CHANGED: frozenset({Code.CONFIG_CHANGED}),
    ProblemCode.LEASE_MISSING: _ALARMS,
    ProblemCode.LEASE_ENDING: frozenset({Code.ETCD_SILENT, Code.LEASE_OVERDUE, *_ALARMS}),
    ProblemCode.EXTERNAL_INTERFACE: frozenset({Code.NO_INTERFACE, Code.INTERFACE_DOWN}),
    ProblemCode.NO_ROUTE_TO_PEERS: frozenset({Code.NO_ROUTE_TO_PEER}),
    ProblemCode.KERNEL_STATE: frozenset(
        {Code.DEVICE_MISSING, Code.DEVICE_FLAW, Code.ROUTE_DIVERTED, Code.ENTRY_MISSING}
    ),
    ProblemCode.MTU: frozenset({Code.CONFIG_CHANGED, Code.CONFIG_INVALID}),
    ProblemCode.CONTAINERS_BLOCKED: frozenset({Code.FORWARDING_OFF, Code.PACKETS_DROPPED}),
    ProblemCode.PEERS_UNREACHABLE: frozenset({Code.ROUTE_DIVERTED, Code.NO_ROUTE_TO_PEER}),
    ProblemCode.FIREWALL: frozenset({Code.RULES_UNKNOWN, Code.MASQUERADING_MISSING}),
}


# What a network has only once it is in service: until then, the daemon's own line has the cause.
_OF_SERVICE = frozenset(
    {
        *(Code.LEASE_MISSING, Code.SUBNET_FILE_MISSING, Code.SUBNET_FILE_DIFFERS, Code.DEVICE_MISSING),
        *(Code.DEVICE_FLAW, Code.ROUTE_DIVERTED, Code.ENTRY_MISSING, Code.RP_FILTER),
    }
)


def explained(line: Line, network: NetworkReport | None) -> bool:
    """Return whether a line is a consequence of the state of its network, which the daemon reports."""
    return network is not None and not network.state.is_up and line.code in _OF_SERVICE


def interface(host: HostSeen) -> Line:
    """Return the line about the external interface."""
    external = host.external
    if not host.is_linked:
        state = "has no carrier" if host.link and host.link.is_up else "is down"
        return found(Code.INTERFACE_DOWN, f"{external.name} {state}", name=external.name)
    nat = "" if host.identity.public_ip == external.address else f", public IP {host.identity.public_ip} by NAT"
    return ok(Link.INTERFACE, f"{external.name} with {external.address}, MTU {external.mtu}{nat}")


def daemon(file: FileSeen, report: DaemonReport | None, network: str, lines: Sequence[Line]) -> Iterator[Line]:
    """Yield the lines about the daemon: what it reports, unless one of the other ``lines`` names or refutes it."""
    if report is not None:
        codes = {Code(line.code) for line in lines if line.code}
        named = {problem for problem, naming in _NAMED_BY.items() if not naming.isdisjoint(codes)}
        if any(line.link is Link.FORWARDING and line.level is Level.OK for line in lines):
            named.add(ProblemCode.CONTAINERS_BLOCKED)  # since gone: the daemon looks every few seconds
        own = [one for one in problems(report) if one.network == network and one.code not in named]
        yield from (found(Code.DAEMON_PROBLEM, problem.text, remedy=problem.remedy) for problem in own)
        yield from () if own else [_running(report, network)]
    elif file.is_running:
        yield found(Code.DAEMON_SILENT, f"a flannelpy runs with {file.path}, and its control socket gives no answer")
    else:
        yield found(Code.DAEMON_STOPPED, f"no flannelpy runs with {file.path}")


def _running(report: DaemonReport, network: str) -> Line:
    state = next((one.state for one in report.networks if one.name == network and not one.state.is_up), None)
    return ok(Link.DAEMON, f"flannelpy {report.version} runs with PID {report.pid}{f', {state}' if state else ''}")


def device(seen: DeviceSeen, holder: LinkOfHost | None) -> Line:
    """Return the line about the tunnel device; ``holder``: the interface that has its address."""
    if seen.link is None:
        other = f", and {holder.name} has its address" if holder else ""
        return found(Code.DEVICE_MISSING, f"there is no tunnel device of flannelpy{other}")
    if seen.flaws:
        return found(Code.DEVICE_FLAW, f"{seen.link.name} {', '.join(seen.flaws)}")
    return ok(Link.DEVICE, f"{seen.link.name} with MTU {seen.link.mtu}")


def bridges(host: HostSeen, plan: Plan, own_link: int, networks: Sequence[IPv4Network]) -> Iterator[Line]:
    """Yield the lines about the bridges of containers.

    ``own_link``: the index of the tunnel device, 0 without one.  ``networks``: all networks of this host.
    """
    tunnels = {own_link, *(link.index for link in host.links if link.kind in _TUNNELS)}  # also of another daemon
    others = [one for one in host.addresses if one.link_index not in tunnels and one.address in plan.network]
    ours = [one for one in others if one.address in plan.subnet]
    for one in others:
        if one not in ours and _is_bridge(host, one):
            text = f"{_name(host, one)} has {one.interface}, which is not of our subnet {plan.subnet}"
            yield found(Code.BRIDGE_OF_OLD_SUBNET, text, bridge=plan.bridge)
    for one in ours:
        yield _bridge(host, one, plan)
    if not any(one in ours or _is_bridge(host, one) for one in others):
        yield _without_bridge(host, plan, networks)


def own_subnet(plan: Plan, diverted: Sequence[str]) -> Iterator[Line]:
    """Yield the line about ``diverted`` packets for the containers of this host, if there are any."""
    if diverted:
        text = f"packets for our subnet {plan.subnet} do not reach its bridge: {'; '.join(diverted)}"
        yield found(Code.SUBNET_DIVERTED, text)


def containers(unplugged: Sequence[LinkOfHost]) -> Iterator[Line]:
    """Yield the line about the ends of containers' veth pairs that are at no bridge, if there are any."""
    if unplugged:
        names, others = ", ".join(link.name for link in unplugged[:_NAMED]), len(unplugged[_NAMED:])
        text = f"{names}{f' and {others} more' if others else ''}: no port of a bridge, without address and route"
        yield found(Code.CONTAINER_UNPLUGGED, text, name=unplugged[0].name)


def _bridge(host: HostSeen, address: Address, plan: Plan) -> Line:
    name = _name(host, address)
    if any(link.index == address.link_index and not link.is_up for link in host.links):
        return found(Code.BRIDGE_DOWN, f"{name} with {address.interface} is down", name=name)
    if address.prefix_len not in (plan.subnet.prefixlen, 32):  # some CNI plugins give /32 to each container's device
        text = f"{name} has {address.interface}, and the subnet has /{plan.subnet.prefixlen}"
        return found(Code.BRIDGE_PREFIX, text, bridge=plan.bridge)
    ports = [link for link in host.links if link.master == address.link_index and link.mtu > plan.mtu]
    if ports:
        text = f"{ports[0].name} of {name} has MTU {ports[0].mtu}, and the overlay carries {plan.mtu}"
        return found(Code.CONTAINER_MTU, text, mtu=plan.mtu)
    return ok(Link.BRIDGE, f"{name} with {address.interface}")


def _without_bridge(host: HostSeen, plan: Plan, networks: Sequence[IPv4Network]) -> Line:
    masters, with_address = {link.master for link in host.links}, {one.link_index for one in host.addresses}
    for link in host.links:
        if link.name in _CONTAINER_BRIDGES and link.index in masters - with_address:
            text = f"{link.name} has containers, and no address"
            return found(Code.BRIDGE_WITHOUT_ADDRESS, text, bridge=plan.bridge, name=link.name)
    for one in host.addresses:
        others = [*networks, *_of_other_tunnels(host)]
        if _name(host, one) == _DOCKER0 and not any(one.address in network for network in others):
            text = f"{_DOCKER0} has {one.interface}, which is not of our subnet {plan.subnet}"
            return found(Code.BRIDGE_ELSEWHERE, text, bridge=plan.bridge)
    return ok(Link.BRIDGE, f"no bridge has an address of {plan.subnet} yet")


def _of_other_tunnels(host: HostSeen) -> Sequence[IPv4Network]:
    """Return the networks of tunnel devices, which may be those of another daemon on this host."""
    tunnels = {link.index for link in host.links if link.kind in _TUNNELS}
    return [one.destination for one in host.addresses if one.link_index in tunnels]


def _is_bridge(host: HostSeen, address: Address) -> bool:
    return any(link.index == address.link_index and link.kind == "bridge" for link in host.links)


def _name(host: HostSeen, address: Address) -> str:
    return next((link.name for link in host.links if link.index == address.link_index), f"if{address.link_index}")


def forwarding(rules: RulesSeen, *, has_bridge: bool) -> Iterator[Line]:
    """Yield the lines about what this host forwards.  Before there is a bridge, Docker may still accept packets."""
    problem = obstacles.of_sysctls(rules.blocked, is_host_forwarding=rules.is_host_forwarding)
    if problem:
        yield _split(Code.FORWARDING_OFF, problem)
    for one in rules.obstacles:
        is_certain = one.is_certain and has_bridge
        yield _split(Code.PACKETS_DROPPED if is_certain else Code.PACKETS_MAY_BE_DROPPED, one.text)
    for failure in rules.failures:
        yield found(Code.RULES_UNKNOWN, failure)
    used, limit = rules.conntrack
    is_full = used > limit * _FULL
    if is_full:
        yield found(Code.CONNTRACK_FULL, f"the kernel tracks {used} connections of at most {limit}", limit=limit * 2)
    if not (problem or rules.obstacles or rules.failures or is_full):
        yield ok(Link.FORWARDING, "nothing stops packets of containers")
    if rules.missing:
        yield found(Code.MASQUERADING_MISSING, "; ".join(rules.missing))
    elif rules.missing is not None:
        yield ok(Link.MASQUERADING, "the rules of -ip-masq are in place")


def _split(code: Code, whole: str) -> Line:
    """Return a line of a text that ends in its remedy, as those of ``obstacles`` do."""
    text, _, remedy = whole.rpartition("; ")
    return found(code, text, remedy=remedy)
