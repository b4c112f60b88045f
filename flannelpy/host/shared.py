"""What the networks of one host share.

Counterpart: none; one flanneld has one external interface, and does not repair the rules of its networks.
"""

from __future__ import annotations

from ipaddress import IPv4Address

from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.host.firewall import Firewall
from flannelpy.host.isolation import Isolation
from flannelpy.host.resources import Resources


class Host:
    """The external interface and public IP of a host, its firewall, and what keeps its networks apart."""

    def __init__(self, external: ExternalInterface, public_ip: IPv4Address, iptables_resync: float = 5) -> None:
        """``iptables_resync``: seconds between two checks of the firewall."""
        self.external = external
        self.public_ip = public_ip
        self.firewall = Firewall(iptables_resync)
        self.resources = Resources()
        self.isolation = Isolation(self.resources)

    def release(self, name: str) -> None:
        """Let other networks have what a network had that has ended; its firewall rules stay, unchecked."""
        self.resources.release(name)
        self.firewall.release(name)
