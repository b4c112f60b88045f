"""The table of verdicts is complete, and docs/check.md has the same one."""

from __future__ import annotations

import re
from pathlib import Path
from string import Formatter

import pytest

from flannelpy.check import verdicts
from flannelpy.check.codes import Code
from flannelpy.check.lines import Level
from flannelpy.check.verdicts import TABLE

PAGE = (Path(__file__).parents[3] / "docs/check.md").read_text()
#: The values with which each remedy is completed where its code is used.
VALUES = {
    Code.INTERFACE_DOWN: {"name"},
    Code.ETCD_CORRUPT: {"member"},
    Code.CONFIG_MISSING: {"key"},
    Code.CONFIG_INVALID: {"key"},
    Code.BRIDGE_OF_OLD_SUBNET: {"bridge"},
    Code.BRIDGE_PREFIX: {"bridge"},
    Code.BRIDGE_ELSEWHERE: {"bridge"},
    Code.BRIDGE_DOWN: {"name"},
    Code.BRIDGE_WITHOUT_ADDRESS: {"bridge", "name"},
    Code.CONTAINER_UNPLUGGED: {"name"},
    Code.CONTAINER_MTU: {"mtu"},
    Code.RP_FILTER: {"device"},
    Code.NO_ROUTE_TO_PEER: {"address"},
    Code.CONNTRACK_FULL: {"limit"},
    Code.PORT_CLOSED: {"port"},
    Code.PORT_PROHIBITED: {"port"},
    Code.DATAGRAMS_LOST: {"port"},
    Code.DATAGRAMS_REFUSED: {"port"},
    Code.MTU_TOO_LARGE: {"change"},
}


def test_every_code_has_a_row_and_its_order() -> None:
    assert list(TABLE) == list(Code)


@pytest.mark.parametrize("code", Code)
def test_the_page_has_the_row_of_the_table(code: Code) -> None:
    row = TABLE[code]
    remedy = re.sub(r"\{\w+\}", "…", row.remedy).replace("{{", "{").replace("}}", "}")
    assert f"| `{code}` | {row.link} | {row.level} | {row.observed} | {remedy} |" in PAGE.splitlines()


def test_the_page_has_no_other_rows() -> None:
    assert re.findall(r"^\| `(\w+)` \| \w+ \| (?:bad|warning) \|", PAGE, re.MULTILINE) == [str(code) for code in Code]


@pytest.mark.parametrize("code", Code)
def test_a_remedy_is_completed_by_the_values_that_its_line_has(code: Code) -> None:
    named = {name for _, name, _, _ in Formatter().parse(TABLE[code].remedy) if name}
    assert named == VALUES.get(code, set())


@pytest.mark.parametrize("code", Code)
def test_only_what_is_not_ok_is_in_the_table(code: Code) -> None:
    assert TABLE[code].level is not Level.OK
    assert TABLE[code].observed
    assert TABLE[code].remedy


def test_a_line_has_the_level_of_its_row_and_a_remedy_of_its_own_if_given() -> None:
    line = verdicts.found(Code.NO_ROUTE_TO_PEER, "text", address="172.17.8.102")
    assert (line.level, line.link, line.code) == (Level.BAD, "peers", "no_route_to_peer")
    assert line.remedy == "add one, or remove the one that rejects: ip route get 172.17.8.102"
    assert verdicts.found(Code.PACKETS_DROPPED, "text", remedy="remove it").remedy == "remove it"
