"""Chains that a run left in the other flavour of iptables, and tables that iptables cannot read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lab import Host, Lab, wait_for
from support.firewalls import FLAVOURS, Flavour

pytestmark = pytest.mark.usefixtures("root")

#: Of another program; a table that does not exist yet is not created by this.
FOREIGN = """*filter
-A FORWARD -s 192.0.2.0/24 -j ACCEPT
COMMIT
"""
TABLES = ("nat", "mangle", "raw", "filter")


@pytest.fixture
def host() -> Iterator[Host]:
    with Lab(hosts=1) as lab:
        lab.put_config()
        yield lab.hosts[0]


def chains(flavour: Flavour) -> set[str]:
    return set().union(*(flavour.chains(table) for table in TABLES))


def run_for_a_while(flavour: Flavour) -> None:
    """Leave all chains behind."""
    daemon = flavour.start_daemon("-ip-masq")
    wait_for(lambda: len(chains(flavour)) == 5, 10, "all chains")
    daemon.stop()


@pytest.mark.parametrize(("before", "after"), [FLAVOURS, FLAVOURS[::-1]])
def test_a_daemon_removes_what_a_run_with_the_other_flavour_left(host: Host, before: str, after: str) -> None:
    old, new = Flavour(host, before), Flavour(host, after)
    old.restore(FOREIGN)
    foreign = old.all_rules()
    run_for_a_while(old)
    daemon = new.start_daemon("-ip-masq")
    wait_for(lambda: len(chains(new)) == 5 and not chains(old), 10, "chains in one flavour only")
    assert old.all_rules() == foreign
    log = daemon.log()
    assert f"Removed iptables-{before} chain FLANNEL-A-11.0.0.0/16 of an earlier run in table filter" in log
    assert "Failed to check" not in log
    assert "Restored" not in log


@pytest.mark.parametrize(("before", "after"), [FLAVOURS, FLAVOURS[::-1]])
def test_cleanup_removes_what_a_run_with_the_other_flavour_left(host: Host, before: str, after: str) -> None:
    old, new = Flavour(host, before), Flavour(host, after)
    old.restore(FOREIGN)
    foreign = old.all_rules()
    run_for_a_while(old)
    messages = new.clean_up()
    assert f"Removed iptables-{before} chain FLANNEL-D-11.0.0.0/16 in table mangle" in messages
    assert old.all_rules() == foreign
    assert [message for message in new.clean_up() if not message.startswith("Removed nothing: ")] == []


def test_tables_of_legacy_are_not_created(host: Host) -> None:
    nft = Flavour(host, "nft")
    run_for_a_while(nft)
    nft.clean_up()
    assert host.run("cat", "/proc/net/ip_tables_names", check=False).stdout == ""


def test_cleanup_with_a_table_that_iptables_cannot_read_removes_all_else_and_may_be_repeated(host: Host) -> None:
    nft = Flavour(host, "nft")
    run_for_a_while(nft)
    host.run("nft", "insert", "rule", "ip", "mangle", "FORWARD", "ct", "state", "new,established", "accept")
    messages = nft.clean_up(check=False)
    assert "Removed iptables chain FLANNEL-M-11.0.0.0/16 in table nat" in messages
    assert "Removed iptables chain FLANNEL-A-11.0.0.0/16 in table filter" in messages
    assert "Removed /run/flannel/subnet.env" in messages
    assert messages[-1].startswith("iptables-save -t mangle printed no table mangle")
    host.run("nft", "delete", "rule", "ip", "mangle", "FORWARD", "handle", handle(host))
    assert chains(nft) == {"FLANNEL-D-11.0.0.0/16"}
    messages = nft.clean_up()
    assert messages[-1] == "Removed iptables chain FLANNEL-D-11.0.0.0/16 in table mangle"
    assert chains(nft) == set()


def handle(host: Host) -> str:
    """The handle of the rule that only nft can read."""
    lines = host.run("nft", "-a", "list", "chain", "ip", "mangle", "FORWARD").stdout.splitlines()
    [line] = [line for line in lines if "ct state" in line]
    return line.rsplit(" ", 1)[1]
