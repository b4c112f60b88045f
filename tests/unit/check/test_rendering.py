"""Lines as text and as JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from flannelpy.check import rendering
from flannelpy.check.codes import Code
from flannelpy.check.lines import Echo, Link, in_order, ok
from flannelpy.check.verdicts import found

PEER = IPv4Network("11.0.2.0/24")
ECHO = Echo(IPv4Address("11.0.1.0"), IPv4Address("11.0.2.0"), 3, 3, 0.5, 1472, 1400)
LINES = [
    ok(Link.INTERFACE, "eth1"),
    replace(found(Code.CONFIG_MISSING, "no config", key="/k"), network="blue"),
    found(Code.BRIDGE_SILENT, "a\nb", peer=PEER, echo=ECHO),
]


def test_text_has_level_link_network_remedy_and_a_summary() -> None:
    first, second, third, summary = rendering.text(LINES).splitlines()
    assert first == "ok       interface     eth1"
    assert second.startswith("bad      config        blue: no config; either no config is written yet")
    assert second.endswith("""etcdctl put /k '{"Network": "10.1.0.0/16"}'""")
    assert third.startswith("warning  peers         a\\nb; either that host")
    assert summary == "1 bad, 1 warning, 1 ok"


def test_the_document_has_what_each_line_has() -> None:
    document = json.loads(rendering.document(LINES))
    assert (document["bad"], document["warning"], document["ok"]) == (1, 1, 1)
    first, second, third = document["lines"]
    assert first == {"level": "ok", "link": "interface", "text": "eth1"}
    assert (second["code"], second["network"]) == ("config_missing", "blue")
    assert third["peer"] == "11.0.2.0/24"
    assert third["echo"] == {
        "source": "11.0.1.0",
        "target": "11.0.2.0",
        "sent": 3,
        "received": 3,
        "round_trip_ms": 0.5,
        "full_mtu": 1472,
        "path_mtu": 1400,
    }


def test_the_lines_follow_the_chain() -> None:
    assert in_order(list(reversed(LINES))) == LINES
