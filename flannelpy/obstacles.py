"""What keeps packets between containers of different hosts from being forwarded, and cannot be cured here.  Pure.

An ACCEPT of iptables ends nothing but iptables' own chain: nftables' base chains at the hook forward decide afterwards.
A rule of another program in front of ours decides before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network
from typing import NamedTuple

from flannelpy.backend.base import Forwarding
from flannelpy.docker_chains import DOCKER_USER
from flannelpy.linux.nftables import BaseChain

# Docker's nftables backend, since version 29.
_DOCKER_TABLE = "docker-bridges"
_FIREWALLD_TABLE = "firewalld"
# Rules that may let packets pass, or pass them to chains that may.
_PASSES = r"-j (?:ACCEPT|RETURN)|-[jg] (?!(?:DROP|REJECT|LOG|NFLOG|MARK|CONNMARK|TCPMSS|FLANNEL-\S+)\b)"
# CNI plugins may give each container a device of its own.
_NAMED_DEVICES = 3


class Obstacle(NamedTuple):
    """``is_certain``: packets are lost, not only perhaps."""

    text: str
    is_certain: bool


class Drop(NamedTuple):
    """A foreign rule that drops what a network sends or receives; ``is_certain``: no rule before it lets it pass."""

    rule: str
    is_certain: bool


class DropSearch:
    """Looks for rules of iptables, in FORWARD and DOCKER-USER, that drop all packets of a network that come one way."""

    def __init__(self, network: IPv4Network, subnet: IPv4Network, forwarding: Forwarding) -> None:
        whole, own = _covering(network), _covering(subnet)
        devices = "|".join(map(re.escape, forwarding.devices))
        incoming = f"(?: -s (?:{whole}))?(?: -d (?:{own}))?(?: -i (?:{devices}))?"
        outgoing = f"(?: -s (?:{own}))?(?: -d (?:{whole}))?(?: -o (?:{devices}))?"
        self._drop = {
            hook: re.compile(rf"^-A {hook}(?:{incoming}|{outgoing}) -j (?:DROP|REJECT).*$".encode(), re.MULTILINE)
            for hook in ("FORWARD", DOCKER_USER)
        }
        self._pass = {
            hook: re.compile(rf"^-A {hook} (?:.* )?(?:{_PASSES})".encode(), re.MULTILINE) for hook in self._drop
        }
        self._end = re.compile(rf"^-A FORWARD -j {DOCKER_USER}$".encode(), re.MULTILINE)
        self._passes: set[str] = set()
        self._has_ended = False
        self.found: list[Drop] = []

    def feed(self, lines: bytes) -> None:
        """Take whole lines of iptables-save.  What stands in FORWARD behind the jump to DOCKER-USER comes too late."""
        for hook in self._drop:
            if any(f"-A {hook} " in drop.rule for drop in self.found) or (hook == "FORWARD" and self._has_ended):
                continue
            end = self._end.search(lines) if hook == "FORWARD" else None
            until = end.start() if end else len(lines)
            drop = self._drop[hook].search(lines, 0, until)
            if self._pass[hook].search(lines, 0, drop.start() if drop else until):
                self._passes.add(hook)
            if drop:
                self.found.append(Drop(drop[0].decode(errors="replace"), hook not in self._passes))
            self._has_ended |= bool(end)


def of_iptables(drops: Iterable[Drop]) -> list[Obstacle]:
    """Rules in front of ours."""
    return [
        Obstacle(
            f"The iptables rule '{drop.rule}' {'drops' if drop.is_certain else 'may drop'} packets between containers "
            "of different hosts before flannelpy's rules accept them; remove it, or accept these packets before it",
            drop.is_certain,
        )
        for drop in drops
    ]


def of_nftables(chains: Iterable[BaseChain], network: IPv4Network) -> list[Obstacle]:
    """Base chains beside iptables."""
    return [_of_chain(chain, network) for chain in chains if chain.drops]


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


def _of_chain(chain: BaseChain, network: IPv4Network) -> Obstacle:
    what = f"The nftables chain {chain}"
    if chain.table == _DOCKER_TABLE:
        remedy = "Docker runs with its nftables backend; start dockerd with --firewall-backend=iptables"
    elif chain.table == _FIREWALLD_TABLE:
        remedy = (
            f"tell firewalld: firewall-cmd --permanent --zone=trusted --add-source={network} && firewall-cmd --reload"
        )
    else:
        remedy = f"accept packets from {network} to {network} there"
    is_certain = not chain.accepts
    effect = "drops" if is_certain else "may drop"
    return Obstacle(
        f"{what} {effect} packets between containers of different hosts after iptables; {remedy}", is_certain
    )


def _covering(network: IPv4Network) -> str:
    """A pattern for the network and all that contain it, but for 0.0.0.0/0, which iptables-save leaves out."""
    lengths = range(1, network.prefixlen + 1)
    return "|".join(re.escape(str(network.supernet(new_prefix=length))) for length in lengths)
