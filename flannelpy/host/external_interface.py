"""The choice of the external interface: asks the kernel for its inputs, and logs its steps.

Counterpart: lookupIface in main.go, pkg/ip/iface.go.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from ipaddress import IPv4Interface, IPv4Network
from typing import NamedTuple

from flannelpy.addressing.interface_choice import Chooser, ExternalInterface, Machine, Wanted
from flannelpy.linux.netlink.client import Netlink
from flannelpy.linux.own_devices import addresses_by_index, is_marked, is_of_earlier_version
from flannelpy.rtnetlink.links import Link
from flannelpy.rtnetlink.routes import RouteQuery

log = logging.getLogger(__name__)

# VirtualBox gives this network to every machine behind its NAT.  Source: VirtualBox manual, section 9.8.
_VIRTUALBOX_NAT = IPv4Network("10.0.2.0/24")


class Leased(NamedTuple):
    """What the subnet files of this host name.

    ``tunnel_addresses``: they identify devices of earlier versions.  ``subnets``: of this host's containers.
    """

    tunnel_addresses: frozenset[IPv4Interface] = frozenset()
    subnets: frozenset[IPv4Network] = frozenset()


async def find(netlink: Netlink, wanted: Wanted, leased: Leased = Leased()) -> ExternalInterface:  # noqa: B008
    """Return the interface and address that the flags choose, by default those of the default route.  Raises HostError.

    A device of flannelpy is never chosen, and the bridge of this host's containers only by its name or address.
    """
    machine = await observe(netlink, wanted, leased)
    _log_candidates(machine)
    chooser = Chooser(wanted, machine)
    if chooser.asks_for_default:
        log.info("Determining IP address of default interface")
    external, misses = chooser.choose()
    for miss in misses:
        log.info("Could not find valid interface: %s", miss)
    if wanted.public_ip is None and not wanted.ifaces and external.address in _VIRTUALBOX_NAT:
        log.warning(
            "%s on %s looks like VirtualBox's NAT, which gives every host the same address; name the interface by "
            "which hosts reach each other with -iface",
            external.address,
            external.holder,
        )
    return external


async def observe(netlink: Netlink, wanted: Wanted, leased: Leased) -> Machine:
    """Return the present inputs of a choice.  Raises HostError."""
    links = {link.index: link for link in await netlink.links()}
    # An interface that appears between the two listings is left out.
    addresses = [address for address in await netlink.addresses() if address.link_index in links]
    own = await _overlay_devices(netlink, links.values(), leased)
    defaults = [route for route in await netlink.default_routes() if route.link_index in links.keys() - own]
    targets = ([wanted.can_reach] if wanted.can_reach else []) + ([] if defaults else list(wanted.etcd))
    answers = await netlink.lookups([RouteQuery(target) for target in targets])
    reach = answers.pop(0) if wanted.can_reach else None
    return Machine(links, addresses, own, defaults, reach, answers, leased.subnets)


async def _overlay_devices(netlink: Netlink, links: Iterable[Link], leased: Leased) -> set[int]:
    """Return the link indices of the devices of any flannelpy."""
    held = await addresses_by_index(netlink)
    return {
        link.index
        for link in links
        if is_marked(link) or is_of_earlier_version(link, held.get(link.index, []), leased.tunnel_addresses)
    }


def _log_candidates(machine: Machine) -> None:
    for one in machine.addresses:
        flaw = f", which is {one.flaw}" if one.flaw else ""
        log.debug("Candidate interface %s with address %s%s", machine.links[one.link_index].name, one.address, flaw)
    for route in machine.defaults:
        log.debug("Candidate default route by %s with metric %d", machine.links[route.link_index].name, route.metric)
