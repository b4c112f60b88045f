"""Lists the rules and settings that stop forwarded packets, by the same code as the daemon.  Nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import TypeVar

from flannelpy.check.observations import RulesSeen
from flannelpy.check.plan import Plan
from flannelpy.errors import HostError
from flannelpy.host import firewall_tables, forward_check
from flannelpy.linux import conntrack, ip_forward, iptables, kernel_modules, nftables
from flannelpy.netfilter import network_rules
from flannelpy.netfilter.address_ranges import AddressRanges
from flannelpy.netfilter.nft_listing import NftTable
from flannelpy.netfilter.obstacles import Traffic

T = TypeVar("T")


def traffic(
    plan: Plan, device: str, external: str, bridges: Sequence[str], peers: Sequence[IPv4Address], direct: int
) -> Traffic:
    """Return the packets that this host forwards; ``direct``: how many of the peers are reached by their public IP."""
    if plan.backend == "host-gw":
        devices, masquerading = [external], external
    else:
        has_direct, has_others = plan.is_direct and direct > 0, direct < len(peers) or not peers
        devices = [device] * bool(has_others and device) + [external] * has_direct
        masquerading = external if plan.is_direct else ""
    hosts = AddressRanges((int(peer), int(peer)) for peer in peers)
    return Traffic(plan.network, plan.subnet, tuple(devices), masquerading, tuple(bridges), hosts)


async def look(packets: Traffic, *, is_masqueraded: bool) -> RulesSeen:
    """Return what stops the packets, and what is missing of -ip-masq."""
    failures: list[str] = []
    listings = _readable(await iptables.tables(may_load=False), failures)
    native: Sequence[NftTable] = ()
    try:
        if kernel_modules.may_be_loaded("nf_tables"):  # to list them would load it
            native = _readable(await nftables.tables(), failures)
    except HostError as error:
        failures.append(str(error))
    blocked = [*packets.devices, *packets.bridges] if packets.bridges else []
    return RulesSeen(
        [device for device in blocked if not ip_forward.is_enabled(device)],
        ip_forward.is_enabled(ip_forward.HOST),
        await forward_check.search(listings, native, packets),
        failures,
        await _missing(packets.network, failures) if is_masqueraded else None,
        conntrack.usage(),
    )


def _readable(found: Mapping[str, T | HostError], failures: list[str]) -> list[T]:
    """Return the listings; add why there is none to ``failures``."""
    failures += [str(one) for one in found.values() if isinstance(one, HostError)]
    return [one for one in found.values() if not isinstance(one, HostError)]


async def _missing(network: IPv4Network, failures: list[str]) -> Sequence[str]:
    """Return how the masquerading rules of a network differ from what they should be."""
    chain = network_rules.masquerade(network)
    if not iptables.may_exist("nat", "nft") and not iptables.may_exist("nat", "legacy"):
        return [f"chain {chain.name}: there is no table nat"]
    try:
        repair = await firewall_tables.compare("nat", [chain], [], [])
    except HostError as error:
        failures.append(str(error))
        return []
    return [f"chain {fault.chain}: {fault.what}" for fault in repair.faults if fault.interrupts]
