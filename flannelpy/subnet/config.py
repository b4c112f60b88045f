"""The network config that an operator stores in etcd.  Pure.

Keys and defaults are v0.5.5's.  flannelpy rejects every config that v0.13.0 rejects, a SubnetMin above SubnetMax, and a
Network that is too large or overlaps a block of special use.  For ``Schema.V3`` the config is read as v0.20.2 reads it:
the default SubnetLen always leaves four subnets, and a config can ask for IPv6, which flannelpy does not route.
Counterpart: subnet/config.go.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from flannelpy.addressing.addresses import special_use_in
from flannelpy.errors import ConfigError
from flannelpy.foreign import shown
from flannelpy.registry.base import Schema
from flannelpy.subnet import go_json

_DEFAULT_SUBNET_LEN = 24
_MIN_NETWORK_LEN = 8
_MAX_NETWORK_LEN = 28
_MAX_SUBNET_LEN = 30
_IPV6_KEYS = ("EnableIPv6", "IPv6Network", "IPv6SubnetLen", "IPv6SubnetMin", "IPv6SubnetMax")
# Characters.  The parsing of 10 MB of JSON would stop the packets of the udp backend for seconds.
_LONGEST = 65536


@dataclass(frozen=True, slots=True)
class BackendConfig:
    """The ``Backend`` object: its type in lower case, and all of its keys."""

    type: str
    options: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """A validated config: subnets of ``subnet_len`` from ``subnet_min`` to ``subnet_max`` (first addresses).

    ``schema`` names the originals by whose rules it was read, and whose JSON the leases have.  ``ignored`` are the keys
    of the config that concern IPv6.
    """

    network: IPv4Network
    subnet_len: int
    subnet_min: IPv4Address
    subnet_max: IPv4Address
    backend: BackendConfig
    schema: Schema = Schema.V2
    ignored: tuple[str, ...] = ()

    def fits(self, subnet: IPv4Network) -> bool:
        """Return whether a host may hold ``subnet`` under this config.  Counterpart: isSubnetConfigCompat."""
        return subnet.prefixlen == self.subnet_len and self.subnet_min <= subnet.network_address <= self.subnet_max


def parse(text: str, schema: Schema = Schema.V2) -> NetworkConfig:
    """Parse and validate the config in ``text``, by the rules of ``schema``.

    Raises ConfigError with key, value and rule.
    """
    if len(text) > _LONGEST:
        raise ConfigError(f"network config has {len(text)} characters, the longest has {_LONGEST}")
    try:
        document = go_json.parse_object(text)
    except ValueError as error:
        raise ConfigError(f"network config is {error}") from error
    ignored = _ignored(document) if schema is Schema.V3 else ()
    network = _network(go_json.get(document, "Network"))
    subnet_len = _subnet_len(go_json.get(document, "SubnetLen"), network, schema)
    size = 1 << (32 - subnet_len)
    # The first subnet is skipped: its address is the network's own, and old kernels treat it as a broadcast address.
    subnet_min = _boundary(document, "SubnetMin", network, subnet_len, default=network.network_address + size)
    subnet_max = _boundary(document, "SubnetMax", network, subnet_len, default=network.broadcast_address - (size - 1))
    if subnet_min > subnet_max:
        raise ConfigError(f"SubnetMin {subnet_min} is above SubnetMax {subnet_max}")
    return NetworkConfig(network, subnet_len, subnet_min, subnet_max, _backend(document), schema, ignored)


def _ignored(document: Mapping[str, object]) -> tuple[str, ...]:
    """Return the keys that concern IPv6.  Raises ConfigError if the config leaves no IPv4."""
    enable_ipv4 = go_json.get(document, "EnableIPv4")
    if enable_ipv4 is False:
        raise ConfigError(
            "EnableIPv4 false leaves nothing to route: flannelpy routes IPv4 only; use true, or leave the key out"
        )
    if enable_ipv4 is not None and enable_ipv4 is not True:
        raise ConfigError(f"EnableIPv4 {_show(enable_ipv4)} is neither true nor false")
    return tuple(key for key in _IPV6_KEYS if go_json.get(document, key) not in (None, False))


def _network(value: object) -> IPv4Network:
    if value is None:
        raise ConfigError('Network is missing: the config needs at least {"Network": "10.1.0.0/16"}')
    # Unlike the original, the standard library also accepts a netmask, or no length at all.
    if not isinstance(value, str) or not re.fullmatch(r"[0-9.]+/[0-9]{1,2}", value):
        raise ConfigError(f"Network {_show(value)} is not an IPv4 network such as 10.1.0.0/16")
    try:
        network = IPv4Network(value, strict=False)
    except ValueError as error:
        raise ConfigError(f"Network {_show(value)} is not an IPv4 network such as 10.1.0.0/16") from error
    if network.prefixlen < _MIN_NETWORK_LEN:
        raise ConfigError(f"Network {network} is too large: it must be /{_MIN_NETWORK_LEN} or longer")
    if block := special_use_in(network):
        raise ConfigError(f"Network {network} overlaps {block}: containers cannot have such addresses")
    if network.prefixlen > _MAX_NETWORK_LEN:
        raise ConfigError(f"Network {network} is too small: minimum useful network prefix is /{_MAX_NETWORK_LEN}")
    return network


def _subnet_len(value: object, network: IPv4Network, schema: Schema) -> int:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise ConfigError(f"SubnetLen {_show(value)} is not a prefix length such as 24")
    # Four subnets are the least that a Network may have.  v0.5.5's default leaves two, in a Network longer than /22.
    subnets_len = 1 if schema is Schema.V2 else 2
    subnet_len = value or max(_DEFAULT_SUBNET_LEN, network.prefixlen + subnets_len)
    if subnet_len > _MAX_SUBNET_LEN:
        raise ConfigError(f"SubnetLen {subnet_len} must be less than /{_MAX_SUBNET_LEN + 1}")
    if subnet_len < network.prefixlen + 2:
        raise ConfigError(
            f"SubnetLen {subnet_len}{'' if value else ' (the default)'} is too short: Network {network} must be able"
            f" to accommodate at least four subnets, so it needs SubnetLen {network.prefixlen + 2} or more"
        )
    return subnet_len


def _boundary(
    document: Mapping[str, object], key: str, network: IPv4Network, subnet_len: int, *, default: IPv4Address
) -> IPv4Address:
    """Return SubnetMin or SubnetMax: the address of a subnet inside the network."""
    value = go_json.get(document, key)
    if value is None:
        return default
    try:
        address = IPv4Address(value) if isinstance(value, str) else None
    except ValueError:
        address = None
    if address is None:
        raise ConfigError(f"{key} {_show(value)} is not an IPv4 address such as {default}")
    if address not in network:
        raise ConfigError(f"{key} {address} is not in the range of the Network {network}")
    if int(address) % (1 << (32 - subnet_len)):
        raise ConfigError(f"{key} {address} is not on a SubnetLen boundary: subnets are /{subnet_len}")
    return address


def _backend(document: Mapping[str, object]) -> BackendConfig:
    options = go_json.get(document, "Backend")
    if options is None:
        return BackendConfig("udp", {})
    if not isinstance(options, dict):
        raise ConfigError(f'Backend {_show(options)} is not an object such as {{"Type": "udp"}}')
    backend_type = go_json.get(options, "Type")
    if backend_type is None:
        raise ConfigError('Backend.Type is missing: name it, as in {"Type": "udp"}, or leave Backend out')
    if not isinstance(backend_type, str):
        raise ConfigError(f'Backend.Type {_show(backend_type)} is not a name such as "udp"')
    return BackendConfig(backend_type.lower(), options)


def _show(value: object) -> str:
    return shown(repr(value)) if isinstance(value, str) else go_json.show(value)
