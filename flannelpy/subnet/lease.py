"""A lease: the holder of a subnet, its key and its value in the store.  Pure.

Counterpart: Lease and LeaseAttrs in subnet/subnet.go, parseSubnetKey and makeSubnetKey in subnet/etcd.go.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from flannelpy.foreign import shown
from flannelpy.registry.base import KeyValue, Lifetime, Schema
from flannelpy.subnet import go_json

_KEY = re.compile(r"(\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3})-(0|[1-9]\d?)", re.ASCII)
_IPV6_SEPARATOR = "&"
#: Characters of a lease's value; the original's values have a few hundred.
_LONGEST_VALUE = 65536
# The value of the key Datapath.
_KERNEL = "kernel"

# A host ID has at most 64 characters; the number of a claim takes nine of them.
_CLAIMANT_PREFIX = 55


class HostIdentity(NamedTuple):
    """A host, by its public IP, and by a host ID that distinguishes hosts with one public IP (empty: none)."""

    public_ip: IPv4Address
    host_id: str = ""

    def claimant(self, number: int) -> str:
        """Return the host ID for one claim of a lease with our host ID: a different one, which ``is_from`` knows."""
        return f"{self.host_id[:_CLAIMANT_PREFIX]}:{number & 0xFFFFFFFF:08x}"

    def is_from(self, attrs: LeaseAttrs) -> bool:
        """Return whether a host with our host ID wrote these attributes: this host, or a clone of it."""
        if not self.host_id:
            return False
        claimant = attrs.host_id.rpartition(":")[0] if attrs.claim else ""
        return attrs.host_id == self.host_id or claimant == self.host_id[:_CLAIMANT_PREFIX]


@dataclass(frozen=True, slots=True)
class LeaseAttrs:
    """The value of a lease.  ``backend_data`` is any JSON that the backend has stored.

    ``host_id`` distinguishes hosts with one public IP; ``claim`` marks a lease that its writer only claims
    (lease_policy.py).  They do not concern peers, so leases that differ only in them are equal.  ``in_kernel``: the
    kernel of this host takes datagrams of the udp backend whose inner checksums are unfinished.  All three are keys of
    flannelpy, which every version of the original ignores.
    """

    public_ip: IPv4Address
    backend_type: str = ""
    backend_data: object = None
    host_id: str = field(default="", compare=False)
    claim: bool = field(default=False, compare=False)
    in_kernel: bool = False

    def encode(self, schema: Schema = Schema.V2) -> str:
        """Return the JSON that the original would write, byte for byte, followed by the keys of flannelpy."""
        document: dict[str, object] = {"PublicIP": str(self.public_ip)}
        if schema is Schema.V3:
            document["PublicIPv6"] = None
        if self.backend_type:
            document["BackendType"] = self.backend_type
        if self.backend_data is not None:
            document["BackendData"] = self.backend_data
        if self.host_id:
            document["HostID"] = self.host_id
        if self.claim:
            document["Claim"] = True
        if self.in_kernel:
            document["Datapath"] = _KERNEL
        return go_json.dump(document)

    @classmethod
    def decode(cls, text: str) -> LeaseAttrs:
        """Parse the value of any version; unknown keys are ignored.  Raises ValueError."""
        if len(text) > _LONGEST_VALUE:
            raise ValueError(f"a value of {len(text)} characters, the longest is {_LONGEST_VALUE}")
        document = go_json.parse_object(text)
        public_ip = go_json.get(document, "PublicIP")
        backend_type = go_json.get(document, "BackendType") or ""
        if not isinstance(public_ip, str):
            raise ValueError("no PublicIP")
        if not isinstance(backend_type, str):
            raise ValueError("BackendType is not a string")
        host_id = go_json.get(document, "HostID")
        return cls(
            _public_ip(public_ip),
            shown(backend_type),
            go_json.get(document, "BackendData"),
            host_id if isinstance(host_id, str) and is_host_id(host_id) else "",
            go_json.get(document, "Claim") is True,
            go_json.get(document, "Datapath") == _KERNEL,
        )


@dataclass(frozen=True, slots=True)
class Lease:
    """A subnet, its holder's attributes, its lifetime, and the store's version and creation.

    The lease with the smaller ``created`` was created earlier (registry/base.py, ``KeyValue``).
    """

    subnet: IPv4Network
    attrs: LeaseAttrs
    lifetime: Lifetime
    version: int
    created: int

    @property
    def is_reservation(self) -> bool:
        """Whether an operator reserved the subnet for the holder: the lease does not expire."""
        return not self.lifetime.expires

    @classmethod
    def from_entry(cls, entry: KeyValue) -> Lease:
        """Parse an entry of the store.  Raises ValueError if key or value is malformed."""
        return cls(parse_key(entry.name), LeaseAttrs.decode(entry.value), entry.lifetime, entry.version, entry.created)


def _public_ip(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except ValueError:
        raise ValueError(f"PublicIP {shown(repr(text))} is not an IPv4 address") from None


def well_formed(entries: Iterable[KeyValue]) -> list[Lease]:
    """Return the entries that are leases; the watch reports the malformed ones."""
    leases = []
    for entry in entries:
        with suppress(ValueError):
            leases.append(Lease.from_entry(entry))
    return leases


def is_inside(subnet: IPv4Network, network: IPv4Network | None) -> bool:
    """Return whether ``subnet`` is a proper part of ``network``; False if ``network`` is None."""
    return network is not None and subnet.prefixlen > network.prefixlen and subnet.subnet_of(network)


def format_key(subnet: IPv4Network) -> str:
    """Return the key of a subnet: ``11.0.101.0-24`` for 11.0.101.0/24."""
    return f"{subnet.network_address}-{subnet.prefixlen}"


def parse_key(name: str) -> IPv4Network:
    """Return the subnet of a key.  Raises ValueError.

    A key with host bits is malformed, because the original never routes to it.  So is a length such as 08, because two
    keys of one subnet would replace each other.
    """
    subnet = occupied_subnet(name)
    if _IPV6_SEPARATOR in name:
        raise ValueError("a dual-stack lease, which flannelpy does not route")
    return subnet


def occupied_subnet(name: str) -> IPv4Network:
    """Return the IPv4 subnet that no other host may lease while there is a key ``name``.  Raises ValueError.

    For a dual-stack lease, ``10.1.5.0-24&fd00::-64``, this is the part in front of the ``&``.
    """
    match = _KEY.fullmatch(name.partition(_IPV6_SEPARATOR)[0])
    if match is None:
        raise ValueError("no subnet key such as 10.1.7.0-24")
    return IPv4Network(f"{match[1]}/{match[2]}")


def is_host_id(text: str) -> bool:
    """Return whether ``text`` may be a host ID, which stays readable in the store."""
    return re.fullmatch("[A-Za-z0-9._:-]{0,64}", text) is not None
