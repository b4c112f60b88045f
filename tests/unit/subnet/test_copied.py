"""The mark of copies in etcd v3 of what is in etcd v2."""

from __future__ import annotations

import json

import pytest

from flannelpy.subnet import config
from flannelpy.subnet.copied import MARK, Original, copy_of, original, shows
from flannelpy.subnet.lease import LeaseAttrs

LEASE = '{"PublicIP":"172.17.8.101","BackendType":"vxlan","BackendData":{"VtepMAC":"ce:fb:01:02:03:04"},"HostID":"a"}'
CONFIG = '{ "Network": "11.0.0.0/16",\n  "Backend": {"Type": "vxlan", "VNI": 1}\n}\n'


@pytest.mark.parametrize("text", [LEASE, CONFIG, "{}", "{ }", '{"a":{}}', '{"ä":"\\"}"}', '{"CopiedFromV2":1,"a":2}'])
def test_a_copy_is_the_text_with_one_more_key(text: str) -> None:
    copy = copy_of(text, 1042)
    assert original(copy) == Original(text.rstrip(), 1042)
    assert {**json.loads(text), MARK: json.loads(copy)[MARK]} == json.loads(copy)


@pytest.mark.parametrize("text", [LEASE, CONFIG, "{}"])
@pytest.mark.parametrize("old_new", [("C", "C"), ('":"7-', '" : "8-'), (',"Cop', ',\n  "Cop'), ('"}', '"\n}\n')])
def test_a_copy_of_a_copy_has_one_mark(text: str, old_new: tuple[str, str]) -> None:
    """As of a config that an operator has written back to v2, perhaps in another format."""
    old, new = old_new
    copied_back = new.join(copy_of(text, 7).rsplit(old, 1))
    assert copy_of(copied_back, 9).count(MARK) == 1
    assert json.loads(copy_of(copied_back, 9)) == json.loads(copy_of(text, 9))
    assert shows(copy_of(text, 9), copied_back)


@pytest.mark.parametrize("text", ["", "[]", "x", '{"a":1', '"a"'])
def test_what_is_no_json_object_cannot_be_marked(text: str) -> None:
    with pytest.raises(ValueError, match="not"):
        copy_of(text, 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        LEASE,
        copy_of(LEASE, 7).replace("101", "102"),
        copy_of(LEASE, 7).replace("vxlan", "udp"),
        copy_of(LEASE, 7) + " ",
        copy_of(LEASE, 7)[:-1] + ',"more":1}',
    ],
)
def test_what_is_unmarked_or_was_changed_since_is_no_copy(text: str) -> None:
    assert original(text) is None


def test_another_write_in_v2_makes_another_copy() -> None:
    assert copy_of(LEASE, 7) != copy_of(LEASE, 8)


def test_config_and_leases_mean_the_same_with_the_mark() -> None:
    assert LeaseAttrs.decode(copy_of(LEASE, 7)) == LeaseAttrs.decode(LEASE)
    assert LeaseAttrs.decode(copy_of(LEASE, 7)).host_id == "a"
    assert config.parse(copy_of(CONFIG, 7)) == config.parse(CONFIG)


def test_flanneld_has_no_field_for_the_mark() -> None:
    """Go's json.Unmarshal ignores a key that no field is named for, and compares without regard to case.

    The fields are those of Config, in subnet/config.go, and LeaseAttrs, in subnet/subnet.go, of v0.20.2.
    """
    of_config = "EnableIPv4 EnableIPv6 Network IPv6Network SubnetMin SubnetMax IPv6SubnetMin IPv6SubnetMax SubnetLen"
    of_config += " IPv6SubnetLen Backend"
    of_lease = "PublicIP PublicIPv6 BackendType BackendData BackendV6Data"
    assert MARK.casefold() not in f"{of_config} {of_lease}".casefold().split()
    for text in (CONFIG, LEASE):
        assert set(json.loads(copy_of(text, 7))) == {*json.loads(text), MARK}


def test_a_host_that_writes_its_lease_removes_the_mark() -> None:
    assert MARK not in LeaseAttrs.decode(copy_of(LEASE, 7)).encode()
