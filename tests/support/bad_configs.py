"""Network configs that are rejected, each with the whole message.  Adjacent ones have different messages."""

from __future__ import annotations

from typing import NamedTuple


class BadConfig(NamedTuple):
    """A config that an operator stored by mistake, and the message about it."""

    text: str
    message: str


def _keys(more: str) -> str:
    """A good config, but for some more keys."""
    return f'{{"Network":"11.0.0.0/16",{more}}}'


BAD_CONFIGS = {
    # No object at all
    "empty": BadConfig("", "network config is not JSON: Expecting value at line 1 column 1"),
    "blank": BadConfig(" \n ", "network config is not JSON: Expecting value at line 2 column 2"),
    "a shell's variable": BadConfig(
        "Network=11.0.0.0/16", "network config is not JSON: Expecting value at line 1 column 1"
    ),
    "quotes eaten by the shell": BadConfig(
        "{Network:11.0.0.0/16}",
        "network config is not JSON: Expecting property name enclosed in double quotes at line 1 column 2",
    ),
    "cut short": BadConfig(
        '{"Network":"11.0.0.0/16"', "network config is not JSON: Expecting ',' delimiter at line 1 column 25"
    ),
    "two in one": BadConfig(
        '{"Network":"11.0.0.0/16"}\n{}', "network config is not JSON: Extra data at line 2 column 1"
    ),
    "a byte order mark": BadConfig(
        '\ufeff{"Network":"11.0.0.0/16"}',
        "network config is not JSON: Unexpected UTF-8 BOM (decode using utf-8-sig) at line 1 column 1",
    ),
    "bytes that were no UTF-8": BadConfig(
        "\ufffd\ufffd", "network config is not JSON: Expecting value at line 1 column 1"
    ),
    "a constant that JSON has not": BadConfig(_keys('"SubnetLen":NaN'), "network config is not JSON: NaN"),
    "a string": BadConfig('"11.0.0.0/16"', 'network config is not a JSON object: "11.0.0.0/16"'),
    "a list over several lines": BadConfig(
        '[\n  {"Network": "11.0.0.0/16"}\n]', 'network config is not a JSON object: [ {"Network": "11.0.0.0/16"} ]'
    ),
    "null": BadConfig("null", "network config is not a JSON object: null"),
    "lists without number": BadConfig(
        _keys(f'"Lists":[{"[]," * 30_000}[]]'), "network config has 90038 characters, the longest has 65536"
    ),
    "blanks without number": BadConfig(
        _keys('"SubnetLen":24') + " " * 70_000, "network config has 70040 characters, the longest has 65536"
    ),
    "lists without end": BadConfig("[" * 20_000, "network config is not JSON: it is nested too deep"),
    "a number of 5000 digits": BadConfig(
        _keys(f'"SubnetLen":{"9" * 5000}'),
        "network config is not JSON: Exceeds the limit (4300 digits) for integer string conversion: value has 5000"
        " digits; use sys.set_int_max_str_digits() to increase the limit",
    ),
    # Network
    "no network": BadConfig("{}", 'Network is missing: the config needs at least {"Network": "10.1.0.0/16"}'),
    "a number for a network": BadConfig('{"Network":11}', "Network 11 is not an IPv4 network such as 10.1.0.0/16"),
    "a config inside a config": BadConfig(
        '{"Network":{"Network":"11.0.0.0/16"}}',
        'Network {"Network":"11.0.0.0/16"} is not an IPv4 network such as 10.1.0.0/16',
    ),
    "a network without its length": BadConfig(
        '{"Network":"11.0.0.0"}', "Network '11.0.0.0' is not an IPv4 network such as 10.1.0.0/16"
    ),
    "an octet too large": BadConfig(
        '{"Network":"11.0.0.256/16"}', "Network '11.0.0.256/16' is not an IPv4 network such as 10.1.0.0/16"
    ),
    "an IPv6 network": BadConfig(
        '{"Network":"fd00::/64"}', "Network 'fd00::/64' is not an IPv4 network such as 10.1.0.0/16"
    ),
    "a network too small": BadConfig(
        '{"Network":"11.0.0.0/29"}', "Network 11.0.0.0/29 is too small: minimum useful network prefix is /28"
    ),
    "a network too small for the default": BadConfig(
        '{"Network":"11.0.0.0/24"}',
        "SubnetLen 25 (the default) is too short: Network 11.0.0.0/24 must be able to accommodate at least four"
        " subnets, so it needs SubnetLen 26 or more",
    ),
    # SubnetLen
    "a length in quotes": BadConfig(_keys('"SubnetLen":"24"'), "SubnetLen '24' is not a prefix length such as 24"),
    "half a length": BadConfig(_keys('"SubnetLen":24.5'), "SubnetLen 24.5 is not a prefix length such as 24"),
    "a negative length": BadConfig(_keys('"SubnetLen":-24'), "SubnetLen -24 is not a prefix length such as 24"),
    "a length beyond all numbers": BadConfig(
        _keys('"SubnetLen":1e400'), "SubnetLen Infinity is not a prefix length such as 24"
    ),
    "a length too long": BadConfig(_keys('"SubnetLen":31'), "SubnetLen 31 must be less than /31"),
    "a length too short": BadConfig(
        _keys('"SubnetLen":17'),
        "SubnetLen 17 is too short: Network 11.0.0.0/16 must be able to accommodate at least four subnets, so it"
        " needs SubnetLen 18 or more",
    ),
    # SubnetMin and SubnetMax
    "a number for an address": BadConfig(
        _keys('"SubnetMin":16'), "SubnetMin 16 is not an IPv4 address such as 11.0.1.0"
    ),
    "a minimum outside": BadConfig(
        _keys('"SubnetMin":"10.255.255.0"'), "SubnetMin 10.255.255.0 is not in the range of the Network 11.0.0.0/16"
    ),
    "a maximum outside": BadConfig(
        _keys('"SubnetMax":"11.1.0.0"'), "SubnetMax 11.1.0.0 is not in the range of the Network 11.0.0.0/16"
    ),
    "a minimum off its boundary": BadConfig(
        _keys('"SubnetMin":"11.0.16.7"'), "SubnetMin 11.0.16.7 is not on a SubnetLen boundary: subnets are /24"
    ),
    "a maximum off its boundary": BadConfig(
        _keys('"SubnetMax":"11.0.31.255"'), "SubnetMax 11.0.31.255 is not on a SubnetLen boundary: subnets are /24"
    ),
    "a minimum above the maximum": BadConfig(
        _keys('"SubnetMin":"11.0.32.0","SubnetMax":"11.0.16.0"'), "SubnetMin 11.0.32.0 is above SubnetMax 11.0.16.0"
    ),
    # Backend
    "a name for a backend": BadConfig(
        _keys('"Backend":"udp"'), 'Backend \'udp\' is not an object such as {"Type": "udp"}'
    ),
    "a backend without a type": BadConfig(
        _keys('"Backend":{"Port":8285}'),
        'Backend.Type is missing: name it, as in {"Type": "udp"}, or leave Backend out',
    ),
    "a number for a type": BadConfig(_keys('"Backend":{"Type":8285}'), 'Backend.Type 8285 is not a name such as "udp"'),
    "another backend": BadConfig(
        _keys('"Backend":{"Type":"gre","Key":1}'),
        "unknown backend type: 'gre'; Backend.Type may be alloc, host-gw, udp, vxlan",
    ),
    "a port too low": BadConfig(
        _keys('"Backend":{"Type":"udp","Port":0}'), "Backend.Port 0 is not a number from 1 to 65535"
    ),
    "a port too high": BadConfig(
        _keys('"Backend":{"Type":"udp","Port":65536}'), "Backend.Port 65536 is not a number from 1 to 65535"
    ),
    "a port in quotes": BadConfig(
        _keys('"Backend":{"Type":"udp","Port":"8285"}'), 'Backend.Port "8285" is not a number from 1 to 65535'
    ),
    "a port that is true": BadConfig(
        _keys('"Backend":{"Type":"udp","Port":true}'), "Backend.Port true is not a number from 1 to 65535"
    ),
    "a port inside a port": BadConfig(
        _keys('"Backend":{"Type":"udp","Port":{"Port":[8285]}}'),
        'Backend.Port {"Port":[8285]} is not a number from 1 to 65535',
    ),
    "a VNI too high": BadConfig(
        _keys('"Backend":{"Type":"vxlan","VNI":16777215}'), "Backend.VNI 16777215 is not a number from 0 to 9999999"
    ),
    "an MTU larger than the interface's": BadConfig(
        _keys('"Backend":{"Type":"vxlan","MTU":9000}'), "Backend.MTU 9000 is not a number from 118 to 1500"
    ),
    "an MTU for udp in quotes": BadConfig(
        _keys('"Backend":{"Type":"udp","MTU":"1400"}'), 'Backend.MTU "1400" is not a number from 96 to 1500'
    ),
    "an MTU for udp larger than the interface's": BadConfig(
        _keys('"Backend":{"Type":"udp","MTU":1501}'), "Backend.MTU 1501 is not a number from 96 to 1500"
    ),
    "swapped bytes of no port": BadConfig(
        _keys('"Backend":{"Type":"vxlan","PortSwapped":true}'),
        "Backend.PortSwapped true needs Backend.Port: without it, every flanneld uses port 8472; leave PortSwapped "
        "out, or name the Port that the hosts of flanneld up to v0.5.5 have in their config",
    ),
    "direct routing in quotes": BadConfig(
        _keys('"Backend":{"Type":"vxlan","DirectRouting":"true"}'),
        'Backend.DirectRouting "true" is not true or false',
    ),
}

#: Of a store in etcd v3.
BAD_CONFIGS_V3 = {name: bad for name, bad in BAD_CONFIGS.items() if name != "a network too small for the default"} | {
    "no IPv4": BadConfig(
        _keys('"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48"'),
        "EnableIPv4 false leaves nothing to route: flannelpy routes IPv4 only; use true, or leave the key out",
    ),
    "IPv4 in quotes": BadConfig(_keys('"EnableIPv4":"true"'), "EnableIPv4 'true' is neither true nor false"),
}
