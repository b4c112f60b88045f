"""A look that fails at a part neither hides what was known of that part, nor what is seen elsewhere."""

from __future__ import annotations

import asyncio
import itertools
import json
from ipaddress import IPv4Network

import pytest
from support.fakes_iptables import FakeTables

from flannelpy.errors import HostError
from flannelpy.host.forward_check import ForwardCheck
from flannelpy.linux import nftables
from flannelpy.netfilter.address_ranges import AddressRanges
from flannelpy.netfilter.nft_listing import Entries, NftTable
from flannelpy.netfilter.obstacles import Traffic

TRAFFIC = Traffic(IPv4Network("11.0.0.0/16"), IPv4Network("11.0.13.0/24"), ("flannel0",), "", ("docker0",))


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> FakeTables:
    fake = FakeTables()
    fake.install(monkeypatch)
    return fake


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ForwardCheck:
    """It may look as often as it is asked."""
    monkeypatch.setattr("flannelpy.host.forward_check._PAUSE_FACTOR", 0)
    return ForwardCheck()


def look(check: ForwardCheck) -> str:
    """What is certain."""
    asyncio.run(check.check({"": TRAFFIC}))
    return check.certain("")


def dropping(name: str) -> NftTable:
    found = NftTable("inet", name)
    head = {"family": "inet", "table": name, "name": "base", "hook": "forward", "type": "filter", "policy": "drop"}
    entries = Entries(found.take)
    entries.feed(json.dumps({"nftables": [{"metainfo": {}}, {"chain": head}]}).encode())
    entries.close()
    return found


def test_a_table_that_cannot_be_read_keeps_its_result_and_is_named_once(
    check: ForwardCheck, tables: FakeTables, caplog: pytest.LogCaptureFixture
) -> None:
    tables.nft_tables = {"inet one": dropping("one")}
    assert "chain inet one base drops" in look(check)
    tables.nft_tables = {"inet one": HostError("too long"), "inet two": HostError("garbage")}
    caplog.clear()
    assert "chain inet one base drops" in look(check)
    look(check)
    assert caplog.messages == [
        "Failed to check whether the nftables table inet one drops packets of containers: too long",
        "Failed to check whether the nftables table inet two drops packets of containers: garbage",
    ]


def test_a_table_that_cannot_be_read_hides_no_other(check: ForwardCheck, tables: FakeTables) -> None:
    tables.nft_tables = {"inet one": HostError("garbage"), "inet two": dropping("two")}
    assert "chain inet two base drops" in look(check)
    tables.failure = "iptables does not work"
    assert "chain inet two base drops" in look(check)


def test_without_a_list_of_tables_all_keep_their_result(
    check: ForwardCheck, tables: FakeTables, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> dict[str, NftTable | HostError]:
        raise HostError("the command nft is missing: install nftables")

    tables.nft_tables = {"inet one": dropping("one")}
    assert look(check)
    monkeypatch.setattr(nftables, "tables", fail)
    caplog.clear()
    assert "chain inet one base drops" in look(check)
    assert look(check)
    assert caplog.messages == [
        "Failed to check whether nftables drops packets of containers: the command nft is missing: install nftables"
    ]


def test_iptables_that_cannot_be_listed_keeps_its_result(check: ForwardCheck, tables: FakeTables) -> None:
    tables.tables["filter"]["FORWARD"].append("-j DROP")
    assert "'-A FORWARD -j DROP' drops" in look(check)
    tables.failure = "another program holds the lock"
    assert "'-A FORWARD -j DROP' drops" in look(check)


def test_what_is_gone_is_logged(check: ForwardCheck, tables: FakeTables, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    tables.tables["filter"]["FORWARD"].append("-j DROP")
    tables.nft_tables = {"inet one": dropping("one")}
    assert look(check)
    caplog.clear()
    tables.tables["filter"]["FORWARD"].clear()
    del tables.nft_tables["inet one"]
    assert look(check) == ""
    assert caplog.messages == [
        "Obstacle is gone: the iptables rule '-A FORWARD -j DROP' (table filter, listed by iptables-save) no longer "
        "stops packets between containers of different hosts",
        "Obstacle is gone: the nftables chain inet one base (its policy) no longer stops packets between containers of "
        "different hosts",
    ]


def test_what_has_not_changed_is_not_searched_again(
    check: ForwardCheck, tables: FakeTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables.nft_tables = {"inet one": dropping("one")}
    assert look(check)
    monkeypatch.setattr("flannelpy.netfilter.obstacles.searches", pytest.fail)
    tables.nft_tables = {"inet one": dropping("one")}
    assert look(check)


def test_rules_that_nothing_has_changed_are_not_listed_again(
    check: ForwardCheck, tables: FakeTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables.generation = 1
    tables.nft_tables = {"inet one": dropping("one"), "inet two": HostError("nft failed")}
    assert look(check)
    tables.nft_tables = {"inet one": dropping("one")}
    assert look(check)
    monkeypatch.setattr(nftables, "tables", pytest.fail)
    assert look(check)


def test_a_network_that_restarts_between_two_checks_has_its_obstacles(check: ForwardCheck, tables: FakeTables) -> None:
    tables.nft_tables = {"inet one": dropping("one")}
    assert look(check)
    check.forget("")
    assert look(check)


def test_tables_that_change_between_the_two_commands_are_listed_again(
    check: ForwardCheck, tables: FakeTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the rule is known from one of the two listings only, and the warning does not name it as it is."""

    async def change() -> dict[str, NftTable | HostError]:
        tables.tables["filter"]["FORWARD"] = ["-j DROP"]
        return {"inet one": dropping("one")}

    assert look(check) == ""
    monkeypatch.setattr(nftables, "tables", change)
    assert "'-A FORWARD -j DROP' drops" in look(check)


def test_tables_that_change_all_the_time_are_searched(
    check: ForwardCheck, tables: FakeTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = itertools.count()

    async def change() -> dict[str, NftTable | HostError]:
        return {f"inet {name}": dropping(str(name)) for name in [next(names)]}

    monkeypatch.setattr(nftables, "tables", change)
    assert "drops packets" in look(check)


def test_a_search_that_fails_is_repeated(
    check: ForwardCheck, tables: FakeTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables.nft_tables = {"inet one": dropping("one")}
    with monkeypatch.context() as broken:
        broken.setattr("flannelpy.netfilter.obstacles.searches", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            look(check)
    assert "chain inet one base drops" in look(check)


def test_a_network_that_ends_during_a_search_leaves_no_obstacle(
    check: ForwardCheck, tables: FakeTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = {"": TRAFFIC}

    async def end() -> dict[str, NftTable | HostError]:
        networks.clear()
        check.forget("")
        return {"inet one": dropping("one")}

    monkeypatch.setattr(nftables, "tables", end)
    asyncio.run(check.check(networks))
    assert not check.is_blocked


def test_a_network_that_is_no_longer_watched_has_no_obstacle(check: ForwardCheck, tables: FakeTables) -> None:
    tables.nft_tables = {"inet one": dropping("one")}
    assert look(check)
    asyncio.run(check.check({}))
    assert not check.is_blocked


def test_a_new_peer_alone_causes_no_early_search(tables: FakeTables, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flannelpy.host.forward_check._PAUSE_FACTOR", 1e9)
    check = ForwardCheck()
    assert look(check) == ""
    tables.nft_tables = {"inet one": dropping("one")}

    async def listed(traffic: Traffic) -> bool:
        check._next_at = asyncio.get_running_loop().time() + 100
        await check.check({"": traffic})
        return check.is_blocked

    assert not asyncio.run(listed(TRAFFIC._replace(peers=AddressRanges([(7, 7)]))))
    assert asyncio.run(listed(TRAFFIC._replace(bridges=("docker0", "br0"))))


def test_what_a_table_dropped_is_not_certain_after_five_minutes_of_failures(
    check: ForwardCheck, tables: FakeTables, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tables.nft_tables = {"inet one": dropping("one"), "inet two": dropping("two")}
    assert "chain inet one base drops" in look(check)
    tables.nft_tables = {"inet one": HostError("too long"), "inet two": dropping("two")}
    assert "chain inet one base drops" in look(check)
    monkeypatch.setattr("flannelpy.host.forward_check._OUTDATED_SECONDS", 0.0)
    caplog.clear()
    assert "chain inet two base drops" in look(check)
    assert caplog.messages == []
    tables.nft_tables = {"inet one": dropping("one")}
    assert "chain inet one base drops" in look(check)


def test_a_failure_of_a_table_that_has_been_removed_is_logged_again_when_it_comes_back(
    check: ForwardCheck, tables: FakeTables, caplog: pytest.LogCaptureFixture
) -> None:
    for nft_tables in ({"inet one": HostError("too long")}, {}, {"inet one": HostError("too long")}):
        tables.nft_tables = dict(nft_tables)
        look(check)
    assert len(caplog.messages) == 2


def test_a_failure_of_iptables_names_the_command_that_lists_the_rules(
    check: ForwardCheck, tables: FakeTables, caplog: pytest.LogCaptureFixture
) -> None:
    tables.failure = "it is locked"
    look(check)
    [line] = caplog.messages
    assert line.startswith("Failed to check whether a rule listed by iptables-save drops packets of containers: ")


def test_a_warning_is_not_repeated_for_other_peers(
    check: ForwardCheck, tables: FakeTables, caplog: pytest.LogCaptureFixture
) -> None:
    tables.nft_tables = {"inet firewalld": dropping("firewalld")}
    for number in (7, 9):
        traffic = TRAFFIC._replace(devices=("eth1",), masquerading="eth1", peers=AddressRanges([(number, number)]))
        asyncio.run(check.check({"": traffic}))
    assert len(caplog.messages) == 1


def test_a_drop_that_is_certain_again_is_not_logged_again(
    check: ForwardCheck, tables: FakeTables, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("flannelpy.host.forward_check._OUTDATED_SECONDS", 0.0)
    is_certain = []
    for found in (dropping("one"), HostError("too long"), dropping("one")):
        tables.nft_tables = {"inet one": found}
        is_certain.append(bool(look(check)))
    assert is_certain == [True, False, True]
    assert len([line for line in caplog.messages if line.startswith("The nftables chain inet one base drops")]) == 1


def test_a_drop_that_comes_and_goes_without_end_is_logged_within_a_limit(
    check: ForwardCheck, tables: FakeTables, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(300):
        tables.nft_tables = {"inet one": dropping("one")} if number % 2 else {}
        look(check)
    assert len(caplog.messages) == 50  # of 100 lines, the other half says that the drop is gone


def test_a_drop_in_a_network_that_starts_again_is_logged_again(
    check: ForwardCheck, tables: FakeTables, caplog: pytest.LogCaptureFixture
) -> None:
    tables.nft_tables = {"inet one": dropping("one")}
    look(check)
    check.forget("")
    tables.nft_tables = {"inet one": dropping("one"), "inet two": dropping("two")}
    look(check)
    assert [line.split(" drops ")[0] for line in caplog.messages] == [
        "The nftables chain inet one base",
        "The nftables chain inet one base",
        "The nftables chain inet two base",
    ]
