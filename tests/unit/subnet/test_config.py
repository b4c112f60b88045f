"""The network config: its keys and defaults, and the errors of a wrong config."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from flannelpy.errors import ConfigError
from flannelpy.registry.base import Schema
from flannelpy.subnet.config import BackendConfig, NetworkConfig, parse

UDP = BackendConfig("udp", {})


def config(
    network: str, subnet_len: int, subnet_min: str, subnet_max: str, backend: BackendConfig = UDP
) -> NetworkConfig:
    return NetworkConfig(IPv4Network(network), subnet_len, IPv4Address(subnet_min), IPv4Address(subnet_max), backend)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"Network":"11.0.0.0/16"}', config("11.0.0.0/16", 24, "11.0.1.0", "11.0.255.0")),
        ('{"network":"11.0.0.0/16"}', config("11.0.0.0/16", 24, "11.0.1.0", "11.0.255.0")),
        ('{"Network":"11.0.7.9/16"}', config("11.0.0.0/16", 24, "11.0.1.0", "11.0.255.0")),
        ('{"Network":"11.0.0.0/16","Comment":"x"}', config("11.0.0.0/16", 24, "11.0.1.0", "11.0.255.0")),
        ('{"Network":"11.0.0.0/16","SubnetLen":0}', config("11.0.0.0/16", 24, "11.0.1.0", "11.0.255.0")),
        ('{"Network":"11.0.0.0/16","SubnetLen":null}', config("11.0.0.0/16", 24, "11.0.1.0", "11.0.255.0")),
        ('{"Network":"11.0.0.0/22"}', config("11.0.0.0/22", 24, "11.0.1.0", "11.0.3.0")),
        ('{"Network":"11.0.0.0/28","SubnetLen":30}', config("11.0.0.0/28", 30, "11.0.0.4", "11.0.0.12")),
        ('{"Network":"11.0.0.0/24","SubnetLen":26}', config("11.0.0.0/24", 26, "11.0.0.64", "11.0.0.192")),
        ('{"Network":"10.0.0.0/8","SubnetLen":20}', config("10.0.0.0/8", 20, "10.0.16.0", "10.255.240.0")),
        ('{"Network":"255.255.0.0/16"}', config("255.255.0.0/16", 24, "255.255.1.0", "255.255.255.0")),
        (
            '{"Network":"11.0.0.0/16","SubnetMin":"11.0.16.0","SubnetMax":"11.0.32.0"}',
            config("11.0.0.0/16", 24, "11.0.16.0", "11.0.32.0"),
        ),
        (
            '{"Network":"11.0.0.0/16","SubnetMin":"11.0.0.0","SubnetMax":"11.0.0.0"}',
            config("11.0.0.0/16", 24, "11.0.0.0", "11.0.0.0"),
        ),
        (
            '{"Network":"11.0.0.0/16","Backend":{"Type":"UDP","Port":7890}}',
            config("11.0.0.0/16", 24, "11.0.1.0", "11.0.255.0", BackendConfig("udp", {"Type": "UDP", "Port": 7890})),
        ),
        (
            '{"Network":"11.0.0.0/16","Backend":{"type":"vxlan"}}',
            config("11.0.0.0/16", 24, "11.0.1.0", "11.0.255.0", BackendConfig("vxlan", {"type": "vxlan"})),
        ),
        ('{"Network":"11.0.0.0/16","Backend":null}', config("11.0.0.0/16", 24, "11.0.1.0", "11.0.255.0")),
    ],
)
def test_keys_and_defaults(text: str, expected: NetworkConfig) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("11.0.0.0/16", config("11.0.0.0/16", 24, "11.0.1.0", "11.0.255.0")),
        ("11.0.0.0/22", config("11.0.0.0/22", 24, "11.0.1.0", "11.0.3.0")),
        ("11.0.0.0/23", config("11.0.0.0/23", 25, "11.0.0.128", "11.0.1.128")),
        ("11.0.0.0/24", config("11.0.0.0/24", 26, "11.0.0.64", "11.0.0.192")),
        ("11.0.0.0/28", config("11.0.0.0/28", 30, "11.0.0.4", "11.0.0.12")),
    ],
)
def test_the_default_of_v3_leaves_four_subnets(network: str, expected: NetworkConfig) -> None:
    assert parse(json.dumps({"Network": network}), Schema.V3) == replace(expected, schema=Schema.V3)


IPV6 = {"IPv6Network": "fd00::/48", "IPv6SubnetLen": 64, "IPv6SubnetMin": "fd00::", "IPv6SubnetMax": "fd00:0:0:9::"}


@pytest.mark.parametrize(
    ("keys", "ignored"),
    [
        ({}, ()),
        ({"EnableIPv4": True}, ()),
        ({"EnableIPv4": None, "EnableIPv6": False, "IPv6SubnetLen": 0}, ()),
        ({"EnableIPv6": True, **IPV6}, ("EnableIPv6", *IPV6)),
        ({"enableipv6": True, "IPv6Network": "rubbish"}, ("EnableIPv6", "IPv6Network")),
    ],
)
def test_keys_of_ipv6_are_ignored_and_in_v3_noted(keys: dict[str, object], ignored: tuple[str, ...]) -> None:
    text = json.dumps({"Network": "11.0.0.0/16"} | keys)
    expected = config("11.0.0.0/16", 24, "11.0.1.0", "11.0.255.0")
    assert parse(text) == expected
    assert parse(text, Schema.V3) == replace(expected, schema=Schema.V3, ignored=ignored)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (False, "EnableIPv4 false leaves nothing to route: flannelpy routes IPv4 only; use true, or leave the key out"),
        ("yes", "EnableIPv4 'yes' is neither true nor false"),
        (1, "EnableIPv4 1 is neither true nor false"),
        (0, "EnableIPv4 0 is neither true nor false"),
    ],
)
def test_a_config_of_v3_without_ipv4_is_refused(value: object, message: str) -> None:
    text = json.dumps({"Network": "11.0.0.0/16", "EnableIPv4": value})
    with pytest.raises(ConfigError) as caught:
        parse(text, Schema.V3)
    assert str(caught.value) == message
    assert parse(text) == config("11.0.0.0/16", 24, "11.0.1.0", "11.0.255.0"), "no key of v2"


@pytest.mark.parametrize("schema", Schema)
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"Network": None}, 'Network is missing: the config needs at least {"Network": "10.1.0.0/16"}'),
        ({"Network": 7}, "Network 7 is not an IPv4 network such as 10.1.0.0/16"),
        ({"Network": "11.0.0.0"}, "Network '11.0.0.0' is not an IPv4 network such as 10.1.0.0/16"),
        ({"Network": "11.0.0.0/33"}, "Network '11.0.0.0/33' is not an IPv4 network such as 10.1.0.0/16"),
        ({"Network": "11.0.0/16"}, "Network '11.0.0/16' is not an IPv4 network such as 10.1.0.0/16"),
        (
            {"Network": "11.0.0.0/255.255.0.0"},
            "Network '11.0.0.0/255.255.0.0' is not an IPv4 network such as 10.1.0.0/16",
        ),
        ({"Network": "fd00::/64"}, "Network 'fd00::/64' is not an IPv4 network such as 10.1.0.0/16"),
        ({"Network": "11.0.0.0/29"}, "Network 11.0.0.0/29 is too small: minimum useful network prefix is /28"),
        *(
            ({"Network": f"10.1.0.0/{length}"}, f"Network {network}/{length} is too large: it must be /8 or longer")
            for length, network in ((0, "0.0.0.0"), (1, "0.0.0.0"), (5, "8.0.0.0"), (7, "10.0.0.0"))
        ),
        *(
            ({"Network": network}, f"Network {network} overlaps {block}: containers cannot have such addresses")
            for network, block in (
                ("0.0.0.0/8", "0.0.0.0/8 (this host itself)"),
                ("0.7.0.0/16", "0.0.0.0/8 (this host itself)"),
                ("127.0.0.0/8", "127.0.0.0/8 (loopback)"),
                ("127.255.255.0/24", "127.0.0.0/8 (loopback)"),
                ("169.0.0.0/8", "169.254.0.0/16 (link-local)"),
                ("169.254.7.0/24", "169.254.0.0/16 (link-local)"),
                ("224.0.0.0/8", "224.0.0.0/4 (multicast)"),
                ("239.255.255.0/24", "224.0.0.0/4 (multicast)"),
            )
        ),
        ({"SubnetLen": "24"}, "SubnetLen '24' is not a prefix length such as 24"),
        ({"SubnetLen": -1}, "SubnetLen -1 is not a prefix length such as 24"),
        ({"SubnetLen": 24.5}, "SubnetLen 24.5 is not a prefix length such as 24"),
        ({"SubnetLen": True}, "SubnetLen true is not a prefix length such as 24"),
        ({"SubnetLen": 31}, "SubnetLen 31 must be less than /31"),
        ({"SubnetLen": 33}, "SubnetLen 33 must be less than /31"),
        (
            {"SubnetLen": 17},
            "SubnetLen 17 is too short: Network 11.0.0.0/16 must be able to accommodate at least four subnets,"
            " so it needs SubnetLen 18 or more",
        ),
        (
            {"SubnetLen": 8},
            "SubnetLen 8 is too short: Network 11.0.0.0/16 must be able to accommodate at least four subnets,"
            " so it needs SubnetLen 18 or more",
        ),
        ({"SubnetMin": 5}, "SubnetMin 5 is not an IPv4 address such as 11.0.1.0"),
        ({"SubnetMin": "11.0.1"}, "SubnetMin '11.0.1' is not an IPv4 address such as 11.0.1.0"),
        ({"SubnetMin": "12.0.1.0"}, "SubnetMin 12.0.1.0 is not in the range of the Network 11.0.0.0/16"),
        ({"SubnetMin": "11.0.1.5"}, "SubnetMin 11.0.1.5 is not on a SubnetLen boundary: subnets are /24"),
        ({"SubnetMax": ""}, "SubnetMax '' is not an IPv4 address such as 11.0.255.0"),
        ({"SubnetMax": "11.1.0.0"}, "SubnetMax 11.1.0.0 is not in the range of the Network 11.0.0.0/16"),
        ({"SubnetMax": "11.0.1.255"}, "SubnetMax 11.0.1.255 is not on a SubnetLen boundary: subnets are /24"),
        (
            {"SubnetMin": "11.0.9.0", "SubnetMax": "11.0.8.0"},
            "SubnetMin 11.0.9.0 is above SubnetMax 11.0.8.0",
        ),
        ({"Backend": "udp"}, 'Backend \'udp\' is not an object such as {"Type": "udp"}'),
        (
            {"Backend": {}},
            'Backend.Type is missing: name it, as in {"Type": "udp"}, or leave Backend out',
        ),
        ({"Backend": {"Type": 1}}, 'Backend.Type 1 is not a name such as "udp"'),
    ],
)
def test_a_wrong_value_is_refused_with_key_value_and_rule(
    keys: dict[str, object], message: str, schema: Schema
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(json.dumps({"Network": "11.0.0.0/16"} | keys), schema)
    assert str(caught.value) == message


@pytest.mark.parametrize(("length", "default"), [(23, 24), (24, 25), (28, 29)])
def test_a_default_of_v2_that_leaves_two_subnets_is_refused(length: int, default: int) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(json.dumps({"Network": f"11.0.0.0/{length}"}))
    assert str(caught.value) == (
        f"SubnetLen {default} (the default) is too short: Network 11.0.0.0/{length} must be able to accommodate at"
        f" least four subnets, so it needs SubnetLen {length + 2} or more"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "network config is not JSON: Expecting value at line 1 column 1"),
        ('{"Network"}', "network config is not JSON: Expecting ':' delimiter at line 1 column 11"),
        ('"11.0.0.0/16"', 'network config is not a JSON object: "11.0.0.0/16"'),
        ("{}", 'Network is missing: the config needs at least {"Network": "10.1.0.0/16"}'),
    ],
)
def test_a_text_without_a_config_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("subnet", "expected"),
    [
        ("11.0.16.0/24", True),
        ("11.0.32.0/24", True),
        ("11.0.20.0/24", True),
        ("11.0.15.0/24", False),
        ("11.0.33.0/24", False),
        ("11.0.16.0/25", False),
        ("11.0.16.0/20", False),
        ("12.0.16.0/24", False),
    ],
)
def test_a_subnet_fits_by_length_and_range(subnet: str, expected: bool) -> None:
    assert config("11.0.0.0/16", 24, "11.0.16.0", "11.0.32.0").fits(IPv4Network(subnet)) is expected
