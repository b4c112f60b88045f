"""The lines of the control socket: what is written is read back, by another version too, and nothing else is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flannelpy.diagnosis import Problem
from flannelpy.errors import MessageError
from flannelpy.report import (
    BackendReport,
    ConfigReport,
    Counts,
    DaemonReport,
    FirewallReport,
    InterfaceReport,
    LeaseReport,
    NetworkReport,
    NetworkState,
    PeerReport,
    PeerRoutesReport,
    RepairReport,
    StoreReport,
    Traffic,
    TrafficReport,
)
from flannelpy.serving import wire

MANUAL = (Path(__file__).parents[3] / "docs/manual.md").read_text()

TEXTS = st.text(max_size=20)
COUNTS = st.integers(0, 2**64 - 1)
TIMES = st.floats(allow_nan=False, allow_infinity=False)
st.register_type_strategy(float, TIMES)
st.register_type_strategy(int, COUNTS)
st.register_type_strategy(Path, st.sampled_from(["/run/flannel/subnet.env", "/tmp/a b.env"]).map(Path))
st.register_type_strategy(Mapping, st.dictionaries(TEXTS, COUNTS))
NETWORKS = st.builds(
    lambda address, length: IPv4Network((address, length), strict=False), st.ip_addresses(v=4), st.integers(0, 32)
)
st.register_type_strategy(IPv4Network, NETWORKS)
REPORTS = st.from_type(DaemonReport)
PEERS = st.from_type(PeerReport)

REPORT = DaemonReport(
    (
        NetworkReport(
            "blue",
            NetworkState.READY,
            since=1.5,
            subnet_file=Path("/run/flannel/blue.env"),
            network=IPv4Network("11.0.0.0/16"),
            store=StoreReport(3, "http://172.17.8.1:2379", 2.5, None),
            lease=LeaseReport(IPv4Network("11.0.59.0/24"), 86399.5, 1.0, 2.0, 7),
            backend=BackendReport("udp", 2, 0, MappingProxyType({"no_route": 3}), "flannel0", 1472, ("gro", "tso")),
            interface=InterfaceReport("eth1", "", IPv4Address("172.17.8.101"), IPv4Address("172.17.8.101"), 1500),
        ),
    ),
    "0.3.0",
    4711,
    1.0,
    "compiled",
)
PEER = PeerReport(IPv4Network("11.0.101.0/24"), IPv4Address("172.17.8.102"), 3.5, "no route", Traffic(1, 84, 2, 168))


@settings(deadline=None, max_examples=25)  # each takes a tenth of a second to make
@given(REPORTS)
def test_a_report_is_read_back_equal(report: DaemonReport) -> None:
    line = wire.part_line(report)
    assert line.count(b"\n") == 1
    assert wire.parse_part(line) == report


@settings(deadline=None)
@given(TEXTS, st.lists(PEERS, max_size=5))
def test_peers_are_read_back_equal(network: str, peers: list[PeerReport]) -> None:
    part = wire.Peers(network, tuple(peers))
    line = wire.part_line(part)
    assert line.count(b"\n") == 1
    assert wire.parse_part(line) == part


@pytest.mark.parametrize("request_", [wire.GetReport(True), wire.GetReport(), wire.SetLogLevel(0), wire.SetLogLevel(9)])
def test_a_request_is_read_back_equal(request_: wire.Request) -> None:
    assert wire.parse_request(wire.request_line(request_)) == request_


@pytest.mark.parametrize("part", [wire.End(), wire.Refusal("32 other clients are connected")])
def test_the_last_part_is_read_back_equal(part: wire.Part) -> None:
    assert wire.parse_part(wire.part_line(part)) == part


def test_the_messages_are_the_documented_ones() -> None:
    assert json.loads(wire.request_line(wire.GetReport(True))) == {"get": "report", "peers": True}
    assert json.loads(wire.request_line(wire.SetLogLevel(1))) == {"set": "log-level", "value": 1}
    assert json.loads(wire.part_line(wire.End())) == {"end": True}
    assert json.loads(wire.part_line(wire.Refusal("no"))) == {"error": "no"}
    report = json.loads(wire.part_line(REPORT))["report"]
    assert report["schema"] == 1
    assert report["networks"][0]["state"] == "ready"
    assert report["networks"][0]["lease"]["subnet"] == "11.0.59.0/24"
    assert report["networks"][0]["backend"]["drops"] == {"no_route": 3}
    peers = json.loads(wire.part_line(wire.Peers("blue", (PEER,))))["peers"]
    assert peers["network"] == "blue"
    assert peers["peers"][0]["public_ip"] == "172.17.8.102"


def with_more(encoded: object) -> object:
    """What a later version writes: every object has one more field."""
    if isinstance(encoded, dict):
        return {**{name: with_more(value) for name, value in encoded.items()}, "later": {"field": [1]}}
    return [with_more(each) for each in encoded] if isinstance(encoded, list) else encoded


def test_fields_of_a_later_version_are_ignored() -> None:
    more = with_more(json.loads(wire.part_line(replace(REPORT, networks=()))))
    assert wire.parse_part(json.dumps(more).encode()) == replace(REPORT, networks=())
    later_peer = with_more(wire.encode_peer(PEER))
    assert wire.decode_peer(later_peer) == PEER


def test_fields_that_an_earlier_version_lacks_have_their_defaults() -> None:
    encoded = {"schema": 1, "networks": [{"name": "", "state": "ready"}]}
    assert wire.decode_report(encoded) == DaemonReport((NetworkReport("", NetworkState.READY),))


def test_another_schema_is_refused_with_what_to_do() -> None:
    with pytest.raises(MessageError, match="schema 2, this flannelpy reads 1: run the flannelpy that the daemon is"):
        wire.decode_report({**wire.encode_report(REPORT), "schema": 2})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("networks", {}),
        ("networks", [1]),
        ("networks", [{"state": "ready"}]),
        ("networks", [{"name": "", "state": "asleep"}]),
        ("networks", [{"name": "", "state": 1}]),
        ("networks", [{"name": "", "state": "ready", "network": "11.0.0.1/16"}]),
        ("networks", [{"name": "", "state": "ready", "backend": {"type": "udp", "drops": []}}]),
        ("networks", [{"name": "", "state": "ready", "backend": {"type": "udp", "mtu": True}}]),
        ("version", 3),
        ("pid", "4711"),
        ("pid", 1.5),
        ("started_at", "now"),
        ("started_at", 10**400),
        ("started_at", False),
    ],
)
def test_a_report_with_a_wrong_value_is_refused(field: str, value: object) -> None:
    with pytest.raises(MessageError, match="not a report of flannelpy"):
        wire.decode_report({**wire.encode_report(REPORT), field: value})


@settings(deadline=None)
@given(st.binary(max_size=100) | st.text(max_size=100).map(str.encode))
def test_arbitrary_bytes_are_refused_in_one_line(line: bytes) -> None:
    for parse in (wire.parse_request, wire.parse_part):
        with pytest.raises(MessageError) as caught:
            parse(line)
        assert str(caught.value).isprintable()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.sampled_from(["get", "set", "report"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["get", "set", "value", "report", "peers", "network", "end"]), inner, max_size=3
        )
    ),
)


def refusal_of(parse: Callable[[bytes], object], line: bytes) -> str:
    """Return the text of the refusal; empty if ``line`` is a message."""
    try:
        parse(line)
    except MessageError as error:
        return str(error)
    return ""


@settings(deadline=None)
@given(JSON)
def test_any_json_is_a_message_or_refused_in_one_line(message: object) -> None:
    line = json.dumps(message).encode()
    assert refusal_of(wire.parse_request, line).isprintable()
    assert refusal_of(wire.parse_part, line).isprintable()


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'{"get": "secrets"}\n', 'unknown request {"get": "secrets"}: ask for the report'),
        (b'{"set": "log-level", "value": -1}', "log-level must be a whole number, from 0 up, not -1"),
        (b'{"set": "log-level", "value": true}', "log-level must be a whole number, from 0 up, not True"),
        (b'{"set": "log-level"}', "log-level must be a whole number, from 0 up, not None"),
        (b"GET / HTTP/1.1\r\n", "not a line with a JSON object: GET / HTTP/1.1"),
        (b"[" * 4000, f"not a line with a JSON object: {'[' * 100}... (4000 characters)"),
        (b"9" * 4096, f"not a line with a JSON object: {'9' * 100}... (4096 characters)"),
    ],
)
def test_a_refusal_names_what_is_wrong(line: bytes, text: str) -> None:
    with pytest.raises(MessageError) as caught:
        wire.parse_request(line)
    assert str(caught.value) == text


def test_the_document_has_the_report_the_peers_and_the_problems() -> None:
    failed = NetworkReport("green", NetworkState.FAILED, "port 8285 is taken")
    document = wire.document(replace(REPORT, networks=(*REPORT.networks, failed)), {"blue": [PEER]})
    text = json.dumps(document, allow_nan=False)
    read = json.loads(text)
    assert read == document
    assert (read["schema"], read["well"]) == (1, False)
    blue, green = read["networks"]
    assert blue["peers"][0]["traffic"]["bytes_in"] == 168
    assert green["peers"] == []
    (problem,) = read["problems"]
    assert (problem["code"], problem["network"]) == ("network_failed", "green")
    assert problem["text"] == "port 8285 is taken"


def test_a_document_of_ready_networks_is_well() -> None:
    assert wire.document(REPORT, {})["well"] is True


#: The objects of the document, by their names in the manual.
OBJECTS = {
    "the document": (DaemonReport, {"schema", "well", "problems"}),
    "networks[]": (NetworkReport, {"peers"}),
    "config": (ConfigReport, set()),
    "store, second_store": (StoreReport, set()),
    "lease": (LeaseReport, set()),
    "backend": (BackendReport, set()),
    "interface": (InterfaceReport, set()),
    "kernel_state": (RepairReport, set()),
    "firewall": (FirewallReport, set()),
    "peer_routes": (PeerRoutesReport, set()),
    "traffic": (TrafficReport, set()),
    "earlier": (Counts, set()),
    "peers[]": (PeerReport, set()),
    "peers[].traffic, backend.carried": (Traffic, set()),
    "problems[]": (Problem, set()),
}


def test_the_manual_lists_all_keys_of_the_document() -> None:
    table = MANUAL.split("| object | keys |\n|---|---|\n")[1].split("\n\n")[0]
    rows = (line.strip("| ").split(" | ") for line in table.splitlines())
    documented = {name.replace("`", ""): set(re.findall(r"`(\w+)`", keys)) for name, keys in rows}
    assert documented == {
        name: {field.name for field in fields(kind)} | others for name, (kind, others) in OBJECTS.items()
    }
