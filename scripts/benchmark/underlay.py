"""The two underlays: *plain*, veths as the kernel creates them, and *wire*, on which only MTU-sized packets cross."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab import Lab

# A NIC cannot segment encapsulated super-packets in hardware here, nor those of UDP; it merges what it receives.
_HOST_OFFLOADS = {
    "tso": "off",
    "gso": "off",
    "tx-udp_tnl-segmentation": "off",
    "tx-udp_tnl-csum-segmentation": "off",
    "tx-udp-segmentation": "off",
    "gro": "on",
}
# A veth merges what it receives only if its peer does not do TSO (veth_skb_is_eligible_for_gro of drivers/net/veth.c).
_SWITCH_OFFLOADS = {"tso": "off"}


class Underlay(Enum):
    """What packets between hosts cross: PLAIN lets super-packets cross as one, WIRE segments and merges them."""

    PLAIN = "plain"
    WIRE = "wire"

    def set_up(self, lab: Lab) -> None:
        """Set the offloads of all hosts of a lab, and of their ports of the switch.  Raises CommandError."""
        if self is Underlay.PLAIN:
            return
        for host in lab.hosts:
            host.run("ethtool", "-K", "eth1", *_arguments(_HOST_OFFLOADS))
            lab.switch.run("ethtool", "-K", host.name, *_arguments(_SWITCH_OFFLOADS))


def _arguments(offloads: dict[str, str]) -> list[str]:
    return [word for pair in offloads.items() for word in pair]
