"""A lease's key and value, byte for byte."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network

import pytest

from flannelpy.registry.base import EXPIRES, PERMANENT, KeyValue, Lifetime, Schema, expires_in
from flannelpy.subnet.lease import Lease, LeaseAttrs, format_key, occupied_subnet, parse_key

PUBLIC_IP = IPv4Address("172.17.8.101")


@pytest.mark.parametrize(
    ("attrs", "text"),
    [
        (LeaseAttrs(PUBLIC_IP), '{"PublicIP":"172.17.8.101"}'),
        (LeaseAttrs(PUBLIC_IP, "host-gw"), '{"PublicIP":"172.17.8.101","BackendType":"host-gw"}'),
        (
            LeaseAttrs(PUBLIC_IP, "vxlan", {"VtepMAC": "82:4b:b6:2f:54:4e"}),
            '{"PublicIP":"172.17.8.101","BackendType":"vxlan","BackendData":{"VtepMAC":"82:4b:b6:2f:54:4e"}}',
        ),
        (
            LeaseAttrs(PUBLIC_IP, "extension", "output"),
            '{"PublicIP":"172.17.8.101","BackendType":"extension","BackendData":"output"}',
        ),
    ],
)
def test_values_of_the_original_are_written_and_read(attrs: LeaseAttrs, text: str) -> None:
    assert attrs.encode() == text
    assert LeaseAttrs.decode(text) == attrs


def test_a_value_in_etcd_v3_also_names_the_ipv6_address_that_there_is_not() -> None:
    attrs = LeaseAttrs(PUBLIC_IP, "vxlan", {"VNI": 1, "VtepMAC": "82:4b:b6:2f:54:4e"}, host_id="ab12", claim=True)
    text = attrs.encode(Schema.V3)
    assert text == (
        '{"PublicIP":"172.17.8.101","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":'
        '"82:4b:b6:2f:54:4e"},"HostID":"ab12","Claim":true}'
    )
    assert LeaseAttrs.decode(text) == attrs


def test_our_own_keys_stand_behind_the_originals_and_make_no_other_lease() -> None:
    attrs = LeaseAttrs(PUBLIC_IP, "vxlan", {"VtepMAC": "82:4b:b6:2f:54:4e"}, host_id="ab12", claim=True)
    text = attrs.encode()
    assert text == (
        '{"PublicIP":"172.17.8.101","BackendType":"vxlan","BackendData":{"VtepMAC":"82:4b:b6:2f:54:4e"},'
        '"HostID":"ab12","Claim":true}'
    )
    read = LeaseAttrs.decode(text)
    assert (read, read.host_id, read.claim) == (attrs, "ab12", True)
    assert read == LeaseAttrs(PUBLIC_IP, "vxlan", {"VtepMAC": "82:4b:b6:2f:54:4e"})
    assert LeaseAttrs(PUBLIC_IP, host_id="ab12").encode() == '{"PublicIP":"172.17.8.101","HostID":"ab12"}'


def test_a_peer_learns_whether_the_kernel_of_a_host_carries_packets() -> None:
    attrs = LeaseAttrs(PUBLIC_IP, host_id="ab12", in_kernel=True)
    assert attrs.encode() == '{"PublicIP":"172.17.8.101","HostID":"ab12","Datapath":"kernel"}'
    assert LeaseAttrs.decode(attrs.encode()).in_kernel
    assert attrs != LeaseAttrs(PUBLIC_IP, host_id="ab12")


@pytest.mark.parametrize("value", ["true", '"Kernel"', '"loop"', "null", '["kernel"]'])
def test_a_host_whose_lease_names_another_datapath_has_none_in_the_kernel(value: str) -> None:
    assert not LeaseAttrs.decode(f'{{"PublicIP":"172.17.8.101","Datapath":{value}}}').in_kernel


@pytest.mark.parametrize("ours", ['"HostID":7', '"HostID":null,"Claim":"yes"', '"HostID":["a"],"Claim":1'])
def test_other_values_of_our_keys_are_ignored(ours: str) -> None:
    read = LeaseAttrs.decode(f'{{"PublicIP":"172.17.8.101",{ours}}}')
    assert (read.public_ip, read.host_id, read.claim) == (PUBLIC_IP, "", False)


@pytest.mark.parametrize(
    "text",
    [
        '{"PublicIP":"172.17.8.101","PublicIPv6":null}',
        ' { "PublicIP" : "172.17.8.101" } \n',
        '{"publicip":"172.17.8.101"}',
        '{"PublicIP":"172.17.8.101","BackendType":"","BackendData":null}',
        '{"PublicIP":"172.17.8.101","Future":{"a":[1]}}',
        '{"PublicIP":"172.17.8.101","PublicIPv6":"fd00::101","BackendV6Data":{"VNI":1,"VtepMAC":"82:4b:b6:2f:54:4e"}}',
    ],
)
def test_values_of_other_versions_are_read(text: str) -> None:
    assert LeaseAttrs.decode(text) == LeaseAttrs(PUBLIC_IP)


@pytest.mark.parametrize(
    "host_id",
    ["a\nWATCHDOG=trigger", "a b", "\x1b[31m", "\ud800", "\u202e", "a" * 65, "a" * 60000, "\u00e9", "a/b", 7, [], {}],
)
def test_a_host_id_that_is_none_counts_as_absent_and_the_lease_is_usable(host_id: object) -> None:
    lease = LeaseAttrs.decode(json.dumps({"PublicIP": str(PUBLIC_IP), "HostID": host_id, "Claim": True}))
    assert (lease.public_ip, lease.host_id, lease.claim) == (PUBLIC_IP, "", True)


@pytest.mark.parametrize(
    ("backend_type", "expected"),
    [
        ("vxlan", "vxlan"),
        ("a\nb", "a\\nb"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\u2028\u202e", "\\u2028\\u202e"),
        ("x" * 5000, "x" * 100 + "... (5000 characters)"),
    ],
)
def test_a_backend_type_is_one_short_line(backend_type: str, expected: str) -> None:
    text = json.dumps({"PublicIP": str(PUBLIC_IP), "BackendType": backend_type})
    assert LeaseAttrs.decode(text).backend_type == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("172.17.8.101", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "no PublicIP"),
        ('{"PublicIP":null}', "no PublicIP"),
        ('{"PublicIP":2887845989}', "no PublicIP"),
        ('{"PublicIP":""}', "PublicIP '' is not an IPv4 address"),
        ('{"PublicIP":"172.17.8"}', "PublicIP '172.17.8' is not an IPv4 address"),
        ('{"PublicIP":"fd00::1"}', "PublicIP 'fd00::1' is not an IPv4 address"),
        ('{"PublicIP":"1\\nE0101 forged"}', r"PublicIP '1\\nE0101 forged' is not an IPv4 address"),
        ('{"PublicIP":"\\ud800"}', r"PublicIP '\\ud800' is not an IPv4 address"),
        ('{"PublicIP":"' + "1" * 60000 + '"}', r"PublicIP '1{99}\.\.\. \(60002 characters\) is not an IPv4 address"),
        ('{"PublicIP":"172.17.8.101","A":"' + "1" * 65536 + '"}', "a value of 65570 characters, the longest is 65536"),
        ('{"PublicIP":"172.17.8.101","BackendData":' + "[" * 64 + "]" * 64 + "}", "nested too deep"),
        ('{"PublicIP":"172.17.8.101","BackendType":7}', "BackendType is not a string"),
    ],
)
def test_a_malformed_value_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LeaseAttrs.decode(text)


@pytest.mark.parametrize(
    ("subnet", "key"),
    [
        ("11.0.101.0/24", "11.0.101.0-24"),
        ("10.1.0.16/28", "10.1.0.16-28"),
        ("0.0.0.0/0", "0.0.0.0-0"),
        ("10.1.7.9/32", "10.1.7.9-32"),
    ],
)
def test_keys_are_written_and_read(subnet: str, key: str) -> None:
    assert format_key(IPv4Network(subnet)) == key
    assert parse_key(key) == IPv4Network(subnet)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "config",
        "11.0.101.0",
        "11.0.101.0/24",
        "11.0.101.0-",
        "11.0.101.0-33",
        "11.0.101.0-024",
        "11.0.101.0-08",
        "011.0.101.0-24",
        "11.0.101.5-24",
        "11.0.256.0-24",
        "11.0.101-24",
        "x11.0.101.0-24",
        "11.0.101.0-24x",
        "11.0.101.0-24\n",
        "11.0.101.0-24&fd00::-64",
        "11.0.101.0-33&fd00::-64",
        "&fd00::-64",
        "\u0661\u0661.0.101.0-24",
        "11.0.101.0-\u0662\u0664",
    ],
)
def test_a_malformed_key_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_key(key)


def test_a_dual_stack_lease_occupies_its_subnet_and_is_no_lease_that_flannelpy_routes() -> None:
    key = "11.0.101.0-24&fd00:0:0:7::-64"
    assert occupied_subnet(key) == occupied_subnet("11.0.101.0-24") == IPv4Network("11.0.101.0/24")
    with pytest.raises(ValueError, match=r"^a dual-stack lease, which flannelpy does not route$"):
        parse_key(key)
    with pytest.raises(ValueError, match=r"^no subnet key such as 10\.1\.7\.0-24$"):
        occupied_subnet("config&fd00::-64")


@pytest.mark.parametrize("lifetime", [expires_in(86394), EXPIRES, PERMANENT])
def test_an_entry_of_the_store_is_read_as_a_lease(lifetime: Lifetime) -> None:
    entry = KeyValue("11.0.59.0-24", '{"PublicIP":"172.17.8.101"}', lifetime, 5, 3)
    assert Lease.from_entry(entry) == Lease(IPv4Network("11.0.59.0/24"), LeaseAttrs(PUBLIC_IP), lifetime, 5, 3)
