"""The firewall: what it restores, counts and logs, and that its failures stop nothing else."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import NamedTuple

import pytest
from support.fakes_clock import run
from support.fakes_iptables import FakeTables

from flannelpy import logs
from flannelpy.datapath.traffic import Datagrams, Forwarding
from flannelpy.errors import HostError
from flannelpy.host import firewall
from flannelpy.host.firewall import Firewall
from flannelpy.linux import accept_local, conntrack
from flannelpy.netfilter.address_ranges import AddressRanges
from flannelpy.netfilter.iptables_listing import Tables
from flannelpy.netfilter.network_rules import NetworkRules
from flannelpy.netfilter.obstacles import Traffic
from flannelpy.netfilter.ruleset import Listing
from flannelpy.registry.base import PERMANENT
from flannelpy.subnet.lease import Lease, LeaseAttrs
from flannelpy.subnet.lease_table import LeaseAdded

BLUE, GREEN, OLD = IPv4Network("11.1.0.0/16"), IPv4Network("11.2.0.0/16"), IPv4Network("11.9.0.0/16")
HOST = IPv4Address("172.17.8.101")
UDP = Datagrams("flannel0", 8285, 8285, accepts_local=True)
Life = Callable[[Callable[["World"], Awaitable[None]]], None]


class Carrier(NamedTuple):
    """As much of a backend as the rules ask for."""

    datagrams: Datagrams | None
    forwarding: Forwarding | None


class World:
    """A firewall on fake tables, in virtual time."""

    def __init__(self, tables: FakeTables) -> None:
        self.tables = tables
        self.firewall = Firewall(5)
        self.reported = 0

    def add(
        self,
        name: str,
        network: IPv4Network,
        datagrams: Datagrams | None = UDP,
        previous: IPv4Network | None = None,
        *,
        is_masqueraded: bool = False,
        forwarding: Forwarding | None = None,
    ) -> None:
        rules = NetworkRules(
            network,
            next(network.subnets(new_prefix=24)),
            HOST,
            Carrier(datagrams, forwarding),
            [previous] if previous else [],
            is_masqueraded=is_masqueraded,
            is_forwarded=True,
        )
        self.firewall.add(name, rules, self.report)

    def report(self) -> None:
        self.reported += 1

    def rules(self, table: str) -> dict[str, list[str]]:
        return {name: list(rules) for name, rules in self.tables.tables[table].items() if rules}


@pytest.fixture
def live(tables: FakeTables, caplog: pytest.LogCaptureFixture) -> Life:
    """Runs a story beside the checks."""
    caplog.set_level("INFO", logger="flannelpy")

    def live(story: Callable[[World], Awaitable[None]]) -> None:
        async def life() -> None:
            world = World(tables)
            checks = asyncio.create_task(world.firewall.run())
            await story(world)
            checks.cancel()

        run(life())

    return live


def traffic(network: IPv4Network) -> Traffic:
    return Traffic(network, next(network.subnets(new_prefix=24)), ("flannel0",), "", ())


def lease(subnet: str, public_ip: str) -> LeaseAdded:
    return LeaseAdded(Lease(IPv4Network(subnet), LeaseAttrs(IPv4Address(public_ip)), PERMANENT, 1, 1))


MASQUERADE = [
    "-s 11.1.0.0/16 -d 11.1.0.0/16 -j RETURN",
    "-s 11.1.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE",
    "! -s 11.1.0.0/16 -d 11.1.0.0/16 -j MASQUERADE",
]


def test_masquerading_is_put_at_once_and_each_rule_is_logged(live: Life, caplog: pytest.LogCaptureFixture) -> None:
    async def story(world: World) -> None:
        world.add("", BLUE, is_masqueraded=True)
        await world.firewall.masquerade("")
        assert world.rules("nat") == {
            "POSTROUTING": ["-j FLANNEL-M-11.1.0.0/16"],
            "FLANNEL-M-11.1.0.0/16": MASQUERADE,
        }
        assert caplog.messages == [
            *(f"Adding iptables rule: FLANNEL-M-11.1.0.0/16 {rule}" for rule in MASQUERADE),
            "Adding iptables rule: POSTROUTING -j FLANNEL-M-11.1.0.0/16",
        ]
        await asyncio.sleep(30)
        assert len(world.tables.restored) == 2  # the other one is the zone, as masquerading tracks connections
        assert len(caplog.messages) == 4

    live(story)


def test_flanneld_s_rules_are_replaced_in_one_go(live: Life) -> None:
    async def story(world: World) -> None:
        nat = world.tables.tables["nat"]
        nat["POSTROUTING"] = ["-s 11.1.0.0/16 -j FLANNEL", "! -s 11.1.0.0/16 -d 11.1.0.0/16 -j MASQUERADE"]
        nat["FLANNEL"] = ["-d 11.1.0.0/16 -j ACCEPT", "! -d 224.0.0.0/4 -j MASQUERADE"]
        world.add("", BLUE, is_masqueraded=True)
        await world.firewall.masquerade("")
        assert world.rules("nat") == {
            "POSTROUTING": ["-j FLANNEL-M-11.1.0.0/16"],
            "FLANNEL-M-11.1.0.0/16": MASQUERADE,
        }
        assert len(world.tables.restored) == 1

    live(story)


def test_a_failure_of_masquerading_is_an_error_that_names_the_flag(live: Life) -> None:
    async def story(world: World) -> None:
        world.add("", BLUE, is_masqueraded=True)
        world.tables.failure = "the command iptables-save is missing: install iptables"
        with pytest.raises(HostError, match=r"^-ip-masq cannot put its rules: the command iptables-save is missing"):
            await world.firewall.masquerade("")
        assert world.tables.restored == []

    live(story)


@pytest.mark.parametrize("seconds", [0.0, 3.8, 4.3, 4.8, 5.3])
def test_masquerading_and_the_checks_do_not_put_the_same_rules_twice(
    live: Life, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """A network starts at any moment, and a table may take long to be listed."""

    async def story(world: World) -> None:
        save = world.tables.save

        async def slow(table: str, listing: Listing, flavour: str = "") -> None:
            await save(table, listing, flavour)
            await asyncio.sleep(0.5)

        monkeypatch.setattr("flannelpy.linux.iptables.save", slow)
        world.add("green", GREEN)
        await asyncio.sleep(seconds)
        world.add("blue", BLUE, is_masqueraded=True)
        await world.firewall.masquerade("blue")
        await asyncio.sleep(20)
        assert world.rules("nat")["POSTROUTING"] == ["-j FLANNEL-M-11.1.0.0/16"]
        assert [text.splitlines()[0] for text in world.tables.restored].count("*nat") == 1
        assert world.firewall.repairs == {}

    live(story)


def test_what_is_lost_comes_back_is_counted_and_logged(live: Life, caplog: pytest.LogCaptureFixture) -> None:
    async def story(world: World) -> None:
        world.add("blue", BLUE, is_masqueraded=True)
        await world.firewall.masquerade("blue")
        world.firewall.apply("blue", [lease("11.1.5.0/24", "172.17.8.102")])
        await asyncio.sleep(10)
        before = {table: world.rules(table) for table in ("nat", "mangle", "raw")}
        caplog.clear()
        nat = world.tables.tables["nat"]
        nat["POSTROUTING"].clear()
        world.tables.tables["mangle"]["FORWARD"].clear()
        del world.tables.tables["mangle"]["FLANNEL-D-11.1.0.0/16"]
        await asyncio.sleep(5.1)
        assert {table: world.rules(table) for table in before} == before
        assert world.firewall.repairs == {"blue": 2}
        assert world.reported == 2
        assert [message.split(";")[0] for message in caplog.messages] == [
            "Restored iptables chain FLANNEL-M-11.1.0.0/16 in table nat: its jump in POSTROUTING was removed",
            "Restored iptables chain FLANNEL-D-11.1.0.0/16 in table mangle: it was removed",
        ]

    live(story)


def test_a_repair_is_logged_under_the_networks_name_and_what_concerns_all_under_none(live: Life) -> None:
    names: list[str] = []

    def name(_: logging.LogRecord) -> bool:
        names.append(logs.network.get())
        return True

    async def story(world: World) -> None:
        world.add("blue", BLUE)
        world.firewall.apply("blue", [])
        await asyncio.sleep(10)
        names.clear()
        world.tables.tables["mangle"]["FORWARD"].clear()
        await asyncio.sleep(10)
        world.tables.failure = "no such command"
        await asyncio.sleep(10)

    firewall.log.addFilter(name)
    try:
        live(story)
    finally:
        firewall.log.removeFilter(name)
    assert names == ["blue", ""]


def test_new_peers_are_no_repair_and_written_at_most_once_a_second(live: Life) -> None:
    async def story(world: World) -> None:
        world.add("", BLUE)
        world.firewall.apply("", [])
        await asyncio.sleep(3)
        written = len(world.tables.restored)
        for number in range(1, 101):
            world.firewall.apply("", [lease(f"11.1.{number}.0/24", f"172.17.9.{number}")])
            await asyncio.sleep(0.03)
        await asyncio.sleep(1.1)
        assert len(world.rules("mangle")["FLANNEL-D-11.1.0.0/16"]) == 100
        assert len(world.tables.restored) - written <= 5
        assert world.firewall.repairs[""] == 0

    live(story)


def test_rules_that_nothing_has_changed_are_not_listed_again(live: Life) -> None:
    async def story(world: World) -> None:
        world.tables.generation = 1
        world.add("blue", BLUE)
        world.firewall.apply("blue", [])
        await asyncio.sleep(20)
        world.tables.saved.clear()
        await asyncio.sleep(25)
        assert world.tables.saved == []
        world.tables.tables["mangle"]["PREROUTING"].clear()
        world.tables.generation = 2
        await asyncio.sleep(20)
        assert world.tables.tables["mangle"]["PREROUTING"]
        assert world.firewall.repairs["blue"] == 1
        world.firewall.apply("blue", [lease("11.1.7.0/24", "172.17.9.7")])
        await asyncio.sleep(3)
        assert world.tables.saved
        assert "172.17.9.7" in str(world.tables.tables["mangle"])

    live(story)


def test_each_table_in_use_is_listed_once(live: Life) -> None:
    async def story(world: World) -> None:
        for name, network in (("blue", BLUE), ("green", GREEN)):
            world.add(name, network)
            world.firewall.apply(name, [])
        await asyncio.sleep(20)
        world.tables.saved.clear()
        await asyncio.sleep(25)
        assert world.tables.saved == ["mangle"] * 5

    live(story)


def test_what_earlier_runs_have_left_goes_and_what_is_foreign_stays(
    live: Life, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(world: World) -> None:
        foreign = ["-j FLANNELX", '-m comment --comment "-j FLANNEL-M-11.1.0.0/16" -j RETURN']
        for table, hook, kind in (("nat", "POSTROUTING", "M"), ("mangle", "FORWARD", "D"), ("raw", "OUTPUT", "Z")):
            chains = world.tables.tables[table]
            chains["FLANNELX"] = ["-j RETURN"]
            for network in (BLUE, OLD, GREEN):
                chains[f"FLANNEL-{kind}-{network}"] = ["-j RETURN"]
                chains[hook].append(f"-j FLANNEL-{kind}-{network}")
            chains[hook] += foreign
        world.add("", BLUE, None, previous=OLD)
        assert world.firewall.is_clean is False
        world.firewall.apply("", [])
        await asyncio.sleep(1)
        assert world.firewall.is_clean is True
        for table, hook, kind in (("nat", "POSTROUTING", "M"), ("mangle", "FORWARD", "D"), ("raw", "OUTPUT", "Z")):
            assert world.rules(table) == {
                hook: [f"-j FLANNEL-{kind}-{GREEN}", *foreign],
                "FLANNELX": ["-j RETURN"],
                f"FLANNEL-{kind}-{GREEN}": ["-j RETURN"],
            }
            for network in (BLUE, OLD):
                removed = f"Removed iptables chain FLANNEL-{kind}-{network} of an earlier run in table {table}"
                assert caplog.messages.count(removed) == 1

    live(story)


def test_a_network_whose_addresses_changed_leaves_the_old_ones_to_others_from_then_on(live: Life) -> None:
    async def story(world: World) -> None:
        world.add("", BLUE, previous=OLD)
        world.firewall.apply("", [])
        await asyncio.sleep(7)
        world.tables.tables["mangle"][f"FLANNEL-D-{OLD}"] = ["-j RETURN"]  # now another daemon has that network
        await asyncio.sleep(20)
        assert f"FLANNEL-D-{OLD}" in world.rules("mangle")

    live(story)


def test_peers_that_come_during_a_check_keep_the_chains_of_an_earlier_run(live: Life) -> None:
    """The table nat is listed first, and the peers come then."""

    async def story(world: World) -> None:
        world.tables.tables["mangle"]["FLANNEL-D-11.1.0.0/16"] = ["-d 172.17.9.7/32 -j DROP"]
        save = world.tables.save

        async def save_then_learn(table: str, listing: Listing, flavour: str = "") -> None:
            await save(table, listing, flavour)
            if table == "nat":
                world.firewall.apply("", [lease("11.1.7.0/24", "172.17.9.7")])

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("flannelpy.linux.iptables.save", save_then_learn)
            world.add("", BLUE)
            await asyncio.sleep(20)
        assert "172.17.9.7" in str(world.tables.tables["mangle"]["FLANNEL-D-11.1.0.0/16"])
        assert not any("-X FLANNEL-D" in text for text in world.tables.restored)

    live(story)


@pytest.mark.parametrize("seconds", [0.1, 0.6, 1.1, 1.6, 4.3, 5.3])
def test_a_network_that_is_added_during_a_check_has_the_chains_of_its_earlier_runs_removed(
    live: Life, tables: FakeTables, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    async def story(world: World) -> None:
        async def slow(table: str, listing: Listing, flavour: str = "") -> None:
            await tables.save(table, listing, flavour)
            await asyncio.sleep(0.5)

        monkeypatch.setattr("flannelpy.linux.iptables.save", slow)
        world.add("green", GREEN)
        await asyncio.sleep(seconds)
        for table, kind in (("nat", "M"), ("mangle", "D"), ("raw", "A"), ("filter", "A")):
            tables.tables[table][f"FLANNEL-{kind}-{OLD}"] = []
        world.add("blue", BLUE, previous=OLD)
        await asyncio.sleep(20)
        assert world.firewall.is_clean
        assert not [name for chains in tables.tables.values() for name in chains if name.endswith(f"-{OLD}")]

    live(story)


def test_several_networks_keep_their_containers_from_each_others_ports(live: Life) -> None:
    async def story(world: World) -> None:
        world.add("blue", BLUE)
        world.add("green", GREEN, UDP._replace(device="flannel1", port=8286))
        world.firewall.apply("green", [lease("11.2.5.0/24", "172.17.8.102")])
        world.firewall.apply("blue", [])
        await asyncio.sleep(2)
        assert sorted(rule for rule in world.rules("mangle")["FORWARD"] if rule.endswith(f"-D-{GREEN}")) == [
            f"-s {source} ! -o flannel1 -p udp -m udp --dport 8286 -j FLANNEL-D-{GREEN}" for source in (BLUE, GREEN)
        ]

    live(story)


def test_a_forged_source_does_not_leave_by_way_of_another_network_s_device(live: Life) -> None:
    """Else a machine on the link sends a packet with a source of blue inside a datagram for green."""

    async def story(world: World) -> None:
        world.add("blue", BLUE, forwarding=Forwarding(["flannel0"], "eth1"))
        world.add("green", GREEN, forwarding=Forwarding(["flannel1"], "eth1"))
        await asyncio.sleep(6)
        for network in (BLUE, GREEN):
            rules = world.rules("filter")[f"FLANNEL-O-{network}"]
            returned = [f"-i {device} -j RETURN" for device in ("flannel0", "flannel1", "eth1")]
            assert sorted(rules[:3]) == sorted(returned)

    live(story)


def test_our_datagrams_get_their_zone_once_the_kernel_tracks_connections(
    live: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        world.add("", BLUE)
        world.firewall.apply("", [])
        await asyncio.sleep(10)
        assert world.rules("raw") == {}
        monkeypatch.setattr(conntrack, "is_in_use", lambda: True)
        await asyncio.sleep(5.1)
        assert set(world.rules("raw")) == {"OUTPUT", "PREROUTING", "FLANNEL-Z-11.1.0.0/16"}
        monkeypatch.setattr(conntrack, "is_in_use", lambda: False)
        await asyncio.sleep(10)
        assert "FLANNEL-Z-11.1.0.0/16" in world.rules("raw")

    live(story)


def test_one_network_that_is_masqueraded_has_the_kernel_track_the_connections_of_all(live: Life) -> None:
    async def story(world: World) -> None:
        for name, network in (("blue", BLUE), ("green", GREEN)):
            world.add(name, network, is_masqueraded=name == "green")
            world.firewall.apply(name, [])
        await asyncio.sleep(10)
        assert {f"FLANNEL-Z-{network}" for network in (BLUE, GREEN)} <= world.rules("raw").keys()

    live(story)


@pytest.mark.parametrize("is_masqueraded", [True, False])
def test_flanneld_s_masquerading_goes_only_where_ours_is_in_its_place(live: Life, is_masqueraded: bool) -> None:
    async def story(world: World) -> None:
        world.add("", BLUE, is_masqueraded=is_masqueraded)
        world.firewall.apply("", [])
        await asyncio.sleep(10)
        nat = world.tables.tables["nat"]
        shared = ["-s 11.1.0.0/16 -j FLANNEL", "! -s 11.1.0.0/16 -d 11.1.0.0/16 -j MASQUERADE"]
        nat["POSTROUTING"] += shared
        nat["FLANNEL"] = ["-d 11.1.0.0/16 -j ACCEPT", "! -d 224.0.0.0/4 -j MASQUERADE"]
        await asyncio.sleep(10)
        ours = ["-j FLANNEL-M-11.1.0.0/16"] if is_masqueraded else shared
        assert world.rules("nat")["POSTROUTING"] == ours
        restored = len(world.tables.restored)
        await asyncio.sleep(30)
        assert len(world.tables.restored) == restored

    live(story)


def test_where_iptables_is_missing_and_not_needed_nothing_is_left_to_remove(
    live: Life, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(world: World) -> None:
        world.tables.failure = "the command iptables-save is missing: install iptables"
        world.add("", BLUE, None)
        world.firewall.apply("", [])
        await asyncio.sleep(10)
        assert world.firewall.is_clean is True

    live(story)
    assert caplog.messages == []


def test_chains_of_earlier_runs_in_a_table_that_fails_are_not_forgotten(
    live: Life, caplog: pytest.LogCaptureFixture
) -> None:
    """No network needs the table, as after a start without -ip-masq: the chain would masquerade ever after."""

    async def story(world: World) -> None:
        world.tables.tables["nat"][f"FLANNEL-M-{BLUE}"] = MASQUERADE
        world.tables.tables["nat"]["POSTROUTING"] = [f"-j FLANNEL-M-{BLUE}"]
        world.tables.failure = "iptables-save -t nat failed: exit code 4: Another app is holding the xtables lock"
        world.add("", BLUE, None)
        world.firewall.apply("", [])
        await asyncio.sleep(20)
        assert world.firewall.is_clean is False
        [message] = caplog.messages
        assert message.startswith(
            "Failed to remove chains of earlier runs from iptables tables nat, mangle, raw, filter: "
            "iptables-save -t nat failed: exit code 4"
        )
        world.tables.failure = ""
        await asyncio.sleep(6)
        assert world.firewall.is_clean is True
        assert world.rules("nat") == {}

    live(story)
    assert "Removed iptables chain FLANNEL-M-11.1.0.0/16 of an earlier run in table nat" in caplog.messages


def test_a_failure_is_one_warning_and_tried_again(live: Life, caplog: pytest.LogCaptureFixture) -> None:
    async def story(world: World) -> None:
        world.tables.failure = "iptables-save -t mangle failed: no permission"
        world.add("", BLUE)
        world.firewall.apply("", [])
        await asyncio.sleep(60)
        [message] = caplog.messages
        assert message.startswith(
            "Failed to check iptables table mangle: iptables-save -t mangle failed: no permission;"
        )
        world.tables.failure = ""
        await asyncio.sleep(5.1)
        assert "FLANNEL-D-11.1.0.0/16" in world.tables.tables["mangle"]
        assert caplog.messages[1:] == ["iptables tables are checked again"]
        assert world.firewall.repairs[""] == 0

    live(story)


def test_a_command_that_fails_for_each_table_is_one_warning(live: Life, caplog: pytest.LogCaptureFixture) -> None:
    async def story(world: World) -> None:
        world.tables.failure = "the command iptables-save is missing: install iptables"
        world.add("", BLUE, forwarding=Forwarding(["flannel0"], "eth1"))
        await asyncio.sleep(20)
        world.firewall.apply("", [])
        await asyncio.sleep(40)

    live(story)
    [message] = [message for message in caplog.messages if "Failed" in message]
    assert message.startswith("Failed to check iptables tables raw, filter: the command iptables-save is missing")
    assert "Docker's rules may drop packets of containers" in message


def test_a_flush_is_one_line_for_each_table_with_the_purpose_of_what_was_interrupted(
    live: Life, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conntrack, "is_in_use", lambda: True)

    async def story(world: World) -> None:
        world.add("", BLUE, forwarding=Forwarding(["flannel0"], "eth1"))
        world.firewall.apply("", [])
        await asyncio.sleep(10)
        caplog.clear()
        raw = world.tables.tables["raw"]
        del raw["FLANNEL-A-11.1.0.0/16"]
        raw["PREROUTING"] = [rule for rule in raw["PREROUTING"] if "FLANNEL-A" not in rule]
        for chain in ("DOCKER-USER", "FORWARD", "FLANNEL-A-11.1.0.0/16"):
            world.tables.tables["filter"][chain].clear()
        await asyncio.sleep(10)
        assert world.firewall.repairs[""] == 5

    live(story)
    raw, filter_ = (message for message in caplog.messages if message.startswith("Restored iptables"))
    assert raw == (
        "Restored iptables chain FLANNEL-A-11.1.0.0/16 in table raw: it was removed; "
        "the way past Docker's rules for containers was interrupted"
    )
    assert filter_ == (
        "Restored iptables chains FLANNEL-A-11.1.0.0/16, FLANNEL-O-11.1.0.0/16 in table filter: it was changed and 2 "
        "more changes; forwarding of packets of containers was interrupted"
    )


@pytest.mark.parametrize(
    ("change", "what", "is_interrupted"),
    [
        (lambda rules: rules.append("-j DROP"), "its jump in FORWARD no longer stood last", False),
        (lambda rules: rules.append(rules[0]), "its jump in FORWARD was repeated", False),
        (lambda rules: rules.insert(0, f"-p tcp -j FLANNEL-A-{BLUE}"), "another jump led there", False),
        (lambda rules: rules.insert(0, "-j RETURN"), "its jump in FORWARD was moved behind a RETURN for all", True),
        (lambda rules: rules.clear(), "its jump in FORWARD was removed", True),
    ],
)
def test_only_what_packets_missed_was_interrupted(
    live: Life, caplog: pytest.LogCaptureFixture, change: Callable[[list[str]], None], what: str, is_interrupted: bool
) -> None:
    async def story(world: World) -> None:
        world.add("", BLUE, None, forwarding=Forwarding(["flannel0"], "eth1"))
        await asyncio.sleep(10)
        caplog.clear()
        change(world.tables.tables["filter"]["FORWARD"])
        await asyncio.sleep(6)
        assert world.firewall.repairs[""] > 0

    live(story)
    [record] = [record for record in caplog.records if record.getMessage().startswith("Restored iptables chain")]
    assert what in record.getMessage()
    assert record.levelname == ("WARNING" if is_interrupted else "INFO")
    end = "was interrupted" if is_interrupted else "was not interrupted"
    assert record.getMessage().endswith(f"forwarding of packets of containers {end}")


def test_a_program_that_keeps_its_rules_last_as_well_does_not_fill_the_log(
    live: Life, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.monotonic", lambda: asyncio.get_event_loop().time())

    async def story(world: World) -> None:
        world.add("", BLUE, None, forwarding=Forwarding(["flannel0"], "eth1"))
        await asyncio.sleep(10)
        caplog.clear()
        for _ in range(120):
            forward = world.tables.tables["filter"]["FORWARD"]
            forward[:] = [rule for rule in forward if rule != "-j KUBE"] + ["-j KUBE"]
            await asyncio.sleep(5)
        assert world.firewall.repairs[""] >= 200

    live(story)
    restored = [message for message in caplog.messages if message.startswith("Restored iptables chain")]
    assert 5 < len(restored) < 12
    assert restored[5].startswith("Restored iptables chains that had moved: ")
    caplog.clear()


def test_what_an_earlier_run_left_in_the_other_flavour_of_iptables_goes(
    live: Life, tables: FakeTables, caplog: pytest.LogCaptureFixture
) -> None:
    """Such chains act beside the new ones, and another program's DROP in that flavour is not looked for there."""
    other = tables.other = FakeTables()
    for network in (BLUE, OLD, GREEN):
        other.tables["filter"][f"FLANNEL-A-{network}"] = [f"-s {network} -j ACCEPT"]
        other.tables["filter"]["FORWARD"].append(f"-j FLANNEL-A-{network}")
    other.tables["mangle"][f"FLANNEL-D-{BLUE}"] = ["-d 172.17.8.102/32 -j DROP"]
    other.tables["mangle"]["FORWARD"] = [f"-p udp -j FLANNEL-D-{BLUE}", "-p tcp -j ACCEPT"]
    del other.tables["raw"]

    async def story(world: World) -> None:
        world.add("", BLUE, previous=OLD, forwarding=Forwarding(["flannel0"], "eth1"))
        await asyncio.sleep(6)
        assert world.firewall.is_clean
        assert f"FLANNEL-A-{BLUE}" in world.tables.tables["filter"]
        saved = len(other.saved)
        await asyncio.sleep(20)
        assert len(other.saved) == saved

    live(story)
    assert other.tables["filter"]["FORWARD"] == [f"-j FLANNEL-A-{GREEN}"]
    assert other.tables["mangle"] == {**FakeTables().tables["mangle"], "FORWARD": ["-p tcp -j ACCEPT"]}
    assert [message for message in caplog.messages if "legacy" in message] == [
        f"Removed iptables-legacy chain FLANNEL-D-{BLUE} of an earlier run in table mangle",
        f"Removed iptables-legacy chain FLANNEL-A-{BLUE} of an earlier run in table filter",
        f"Removed iptables-legacy chain FLANNEL-A-{OLD} of an earlier run in table filter",
    ]


def test_a_change_of_flavour_while_the_daemon_runs_is_noticed(live: Life, tables: FakeTables) -> None:
    """As by update-alternatives: then what was written so far is in the other flavour."""

    async def story(world: World) -> None:
        world.add("", BLUE, forwarding=Forwarding(["flannel0"], "eth1"))
        world.firewall.apply("", [])
        await asyncio.sleep(6)
        other = tables.other = FakeTables()
        other.tables, tables.tables = tables.tables, other.tables
        await asyncio.sleep(6)
        assert f"FLANNEL-A-{BLUE}" in tables.tables["filter"]
        assert other.tables == FakeTables().tables

    live(story)


def test_a_flavour_that_fails_does_not_keep_the_rules_from_their_check(
    live: Life, tables: FakeTables, caplog: pytest.LogCaptureFixture
) -> None:
    tables.other = FakeTables()
    tables.other.failure = "iptables-legacy-save failed: exit code 4"

    async def story(world: World) -> None:
        world.add("", BLUE, forwarding=Forwarding(["flannel0"], "eth1"))
        await asyncio.sleep(6)
        assert f"FLANNEL-A-{BLUE}" in world.tables.tables["filter"]
        await asyncio.sleep(60)

    live(story)
    [message] = caplog.messages
    assert message.startswith(
        "Failed to remove chains of earlier runs from iptables tables nat, mangle, raw, filter: "
        "iptables-legacy-save failed"
    )


@pytest.mark.parametrize("is_masqueraded", [True, False])
def test_flanneld_s_masquerading_in_the_other_flavour_goes_where_ours_is_in_its_place(
    live: Life, tables: FakeTables, is_masqueraded: bool
) -> None:
    """As after an upgrade of a host whose iptables was iptables-legacy."""
    other = tables.other = FakeTables()
    other.tables["nat"]["POSTROUTING"] = ["-s 11.1.0.0/16 -j FLANNEL", "! -s 11.1.0.0/16 -d 11.1.0.0/16 -j MASQUERADE"]
    other.tables["nat"]["FLANNEL"] = ["-d 11.1.0.0/16 -j ACCEPT", "! -d 224.0.0.0/4 -j MASQUERADE"]
    before = {chain: list(rules) for chain, rules in other.tables["nat"].items()}

    async def story(world: World) -> None:
        world.add("", BLUE, is_masqueraded=is_masqueraded)
        world.firewall.apply("", [])
        await asyncio.sleep(6)
        assert world.firewall.is_clean

    live(story)
    assert other.tables["nat"] == (FakeTables().tables["nat"] if is_masqueraded else before)


def test_chains_in_a_flavour_that_fails_are_removed_once_it_works(live: Life, tables: FakeTables) -> None:
    other = tables.other = FakeTables()
    other.failure = "iptables-legacy-save -t filter failed: exit code 4"
    other.apply(f"*filter\n:FLANNEL-A-{OLD} - [0:0]\n-A FORWARD -j FLANNEL-A-{OLD}\nCOMMIT\n")

    async def story(world: World) -> None:
        world.add("", BLUE, previous=OLD, forwarding=Forwarding(["flannel0"], "eth1"))
        await asyncio.sleep(6)
        assert world.firewall.is_clean is False
        world.tables.tables["filter"][f"FLANNEL-A-{OLD}"] = []  # now another daemon has that network
        other.failure = ""
        await asyncio.sleep(6)
        assert world.firewall.is_clean is True
        assert f"FLANNEL-A-{OLD}" in world.tables.tables["filter"]

    live(story)
    assert other.tables == FakeTables().tables


def test_what_stops_packets_is_looked_for_without_forward_rules_too_and_reported_at_once(live: Life) -> None:
    async def story(world: World) -> None:
        world.add("", BLUE)
        traffic = Traffic(BLUE, next(BLUE.subnets(new_prefix=24)), ("flannel0",), "", ())
        reports: list[str] = []
        world.firewall.watch("", traffic, lambda: reports.append(world.firewall.report("").obstacle))
        await asyncio.sleep(10)
        assert world.firewall.report("").obstacle == ""
        world.tables.tables["filter"]["FORWARD"].append("-o docker0 -j DROP")
        world.firewall.watch("", traffic._replace(bridges=("docker0",)), lambda: reports.append("now"))
        await asyncio.sleep(1.5)
        assert "'-A FORWARD -o docker0 -j DROP' drops" in world.firewall.report("").obstacle
        assert reports[-1] == "now"
        world.tables.tables["filter"]["FORWARD"].clear()
        await asyncio.sleep(5.5)
        assert world.firewall.report("").obstacle == ""

    live(story)


def test_a_new_peer_alone_starts_no_search(live: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """host-gw has the public IPs of all peers in its traffic; a search lists all tables."""
    searches: list[float] = []

    async def story(world: World) -> None:
        async def listed() -> dict[str, Tables | HostError]:
            searches.append(asyncio.get_running_loop().time())
            return await world.tables.all_tables()

        monkeypatch.setattr("flannelpy.linux.iptables.tables", listed)
        world.add("", BLUE)
        world.firewall.watch("", traffic(BLUE), lambda: None)
        await asyncio.sleep(20.5)
        before = len(searches)
        for number in range(1, 4):
            peers = AddressRanges([(number, number)])
            world.firewall.watch("", traffic(BLUE)._replace(peers=peers), lambda: None)
            await asyncio.sleep(1.1)
        assert len(searches) - before <= 1
        before = len(searches)
        world.firewall.watch("", traffic(BLUE)._replace(devices=("flannel1",)), lambda: None)
        await asyncio.sleep(1.1)
        assert len(searches) == before + 1

    live(story)


def test_masquerading_does_not_wait_for_the_search(live: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        async def slow() -> dict[str, Tables | HostError]:
            await asyncio.sleep(45)
            return await world.tables.all_tables()

        monkeypatch.setattr("flannelpy.linux.iptables.tables", slow)
        world.add("blue", BLUE)
        world.firewall.watch("blue", traffic(BLUE), lambda: None)
        await asyncio.sleep(3)
        world.add("green", GREEN, is_masqueraded=True)
        async with asyncio.timeout(1):
            await world.firewall.masquerade("green")

    live(story)


def test_commands_without_effect_do_not_pile_up(live: Life, caplog: pytest.LogCaptureFixture) -> None:
    async def story(world: World) -> None:
        world.tables.is_deaf = True
        world.add("", BLUE)
        world.firewall.apply("", [])
        await asyncio.sleep(59)
        assert len(world.tables.restored) == 1
        [message] = caplog.messages
        assert "iptables-restore reports success, but iptables-save does not show the rules" in message
        world.tables.is_deaf = False
        await asyncio.sleep(10)
        assert "FLANNEL-D-11.1.0.0/16" in world.tables.tables["mangle"]

    live(story)


def test_rules_that_another_program_removes_at_once_are_added_again(
    live: Life, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(world: World) -> None:
        world.tables.generation = 1
        restore = world.tables.restore

        async def restore_and_flush(text: bytes, flavour: str = "") -> None:
            before = {chain: list(rules) for chain, rules in world.tables.tables["mangle"].items()}
            await restore(text, flavour)
            if len(world.tables.restored) == 1:
                world.tables.tables["mangle"] = before
            world.tables.generation = 1 + len(world.tables.restored)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("flannelpy.linux.iptables.restore", restore_and_flush)
            world.add("", BLUE)
            world.firewall.apply("", [])
            await asyncio.sleep(8)
        assert "FLANNEL-D-11.1.0.0/16" in world.tables.tables["mangle"]
        assert "reports success" not in caplog.text

    live(story)


def test_flanneld_s_rules_that_cannot_be_removed_are_no_reason_to_try_all_the_time(live: Life) -> None:
    async def story(world: World) -> None:
        world.tables.is_deaf = True
        world.tables.tables["nat"]["POSTROUTING"] = ["-s 11.1.0.0/16 -j FLANNEL"]
        world.tables.tables["nat"]["FLANNEL"] = ["-d 11.1.0.0/16 -j ACCEPT", "! -d 224.0.0.0/4 -j MASQUERADE"]
        world.add("", BLUE, is_masqueraded=True)
        world.firewall.apply("", [])
        await asyncio.sleep(59)
        [text] = (text for text in world.tables.restored if text.startswith("*nat"))
        assert "-j FLANNEL\n" in text

    live(story)


def test_commands_that_were_in_vain_are_given_again_once_the_rules_were_there(live: Life) -> None:
    async def story(world: World) -> None:
        world.tables.is_deaf = True
        world.add("", BLUE)
        world.firewall.apply("", [])
        await asyncio.sleep(6)
        before = {chain: list(rules) for chain, rules in world.tables.tables["mangle"].items()}
        [text] = world.tables.restored
        world.tables.is_deaf = False
        world.tables.apply(text)  # by an operator
        await asyncio.sleep(6)
        world.tables.tables["mangle"] = before
        await asyncio.sleep(6)
        assert world.tables.restored == [text, text]
        assert "FLANNEL-D-11.1.0.0/16" in world.tables.tables["mangle"]

    live(story)


class Sysctls:
    """accept_local of all devices and of flannel0, in a directory."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, of_all: str = "0", own: str = "0") -> None:
        monkeypatch.undo()
        monkeypatch.setattr(accept_local, "_CONF", directory)
        for device, value in (("all", of_all), ("flannel0", own)):
            (directory / device).mkdir()
            (directory / device / "accept_local").write_text(f"{value}\n")
        self.own = directory / "flannel0" / "accept_local"
        FakeTables().install(monkeypatch)
        monkeypatch.setattr(conntrack, "is_in_use", lambda: False)


def test_accept_local_is_restored(
    live: Life, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    sysctls = Sysctls(tmp_path, monkeypatch)

    async def story(world: World) -> None:
        world.add("", BLUE)
        world.add("green", GREEN, UDP._replace(accepts_local=False))
        await asyncio.sleep(5.1)
        assert sysctls.own.read_text() == "1"
        assert world.firewall.repairs == {"": 1}
        sysctls.own.unlink()  # with the device
        await asyncio.sleep(20)
        sysctls.own.mkdir()
        await asyncio.sleep(20)
        assert world.firewall.repairs == {"": 1}
        sysctls.own.rmdir()
        sysctls.own.write_text("1\n")
        await asyncio.sleep(20)

    live(story)
    restored, broken, recovered = (message for message in caplog.messages if "accept_local" in message)
    assert restored.startswith("Restored accept_local of flannel0: another program set it to 0")
    assert broken.startswith(f"Failed to check accept_local of flannel0: cannot read {sysctls.own}: Is a directory")
    assert recovered == "accept_local of flannel0 is checked again"


@pytest.mark.parametrize(
    ("of_all", "own", "warnings"),
    [("0", "0", 1), ("1", "0", 0), ("0", "1", 0), ("1", "1", 0)],
)
def test_settings_that_are_read_only_are_one_warning_if_they_are_wrong(
    live: Life,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    of_all: str,
    own: str,
    warnings: int,
) -> None:
    Sysctls(tmp_path, monkeypatch, of_all, own)

    def refuse(path: Path, _: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "write_text", refuse)

    async def story(world: World) -> None:
        world.add("", BLUE)
        assert len(caplog.messages) == warnings  # at the start, not some seconds later
        await asyncio.sleep(60)
        assert world.firewall.repairs == {}

    live(story)
    warned = [message for message in caplog.messages if "accept_local" in message]
    assert len(warned) == warnings
    assert all("Read-only file system; packets travel" in message for message in warned)


def test_settings_that_are_hidden_are_one_warning(
    live: Life, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    Sysctls(tmp_path, monkeypatch)
    shutil.rmtree(tmp_path / "all")
    shutil.rmtree(tmp_path / "flannel0")

    async def story(world: World) -> None:
        world.add("", BLUE)
        await asyncio.sleep(60)

    live(story)
    [warned] = caplog.messages
    assert "No such file or directory; packets travel" in warned


# A network that ends


def test_the_rules_of_a_network_that_has_ended_stay_and_are_checked_no_longer(
    live: Life, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(world: World) -> None:
        for name, network in (("blue", BLUE), ("green", GREEN)):
            world.add(name, network)
            world.firewall.apply(name, [])
        await asyncio.sleep(6)
        blue = "FLANNEL-D-11.1.0.0/16"
        world.firewall.release("blue")
        await asyncio.sleep(20)
        assert blue in world.tables.tables["mangle"]
        del world.tables.tables["mangle"][blue]
        await asyncio.sleep(20)
        assert blue not in world.tables.tables["mangle"]
        assert world.firewall.repairs == {}
        world.add("blue", BLUE)  # it is started again
        world.firewall.apply("blue", [])
        await asyncio.sleep(20)
        assert blue in world.tables.tables["mangle"]
        assert world.firewall.repairs == {}
        world.firewall.release("red")  # which never came that far

    live(story)
    assert not [message for message in caplog.messages if "Restored" in message]


def test_a_network_may_end_while_its_rules_are_checked(
    live: Life, tables: FakeTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        async def save(table: str, listing: Listing, flavour: str = "") -> None:
            world.firewall.release("blue")
            await tables.save(table, listing, flavour)

        world.add("blue", BLUE, forwarding=Forwarding(["flannel0"], "eth1"))
        world.add("green", GREEN, forwarding=Forwarding(["flannel1"], "eth1"))
        world.firewall.apply("blue", [])
        await asyncio.sleep(6)
        world.tables.tables["mangle"].pop("FLANNEL-D-11.1.0.0/16")
        monkeypatch.setattr("flannelpy.linux.iptables.save", save)
        await asyncio.sleep(20)
        assert world.firewall.repairs == {}

    live(story)


def test_a_fault_of_the_check_ends_nothing_and_is_logged_once(
    live: Life, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(world: World) -> None:
        world.add("", BLUE)
        with monkeypatch.context() as broken:
            broken.setattr(conntrack, "is_in_use", lambda: 1 // 0)
            await asyncio.sleep(30)
        await asyncio.sleep(10)
        assert "FLANNEL-Z-11.1.0.0/16" not in world.rules("raw")

    live(story)
    fault, again = [message for message in caplog.messages if "iptables rules" in message]
    assert fault.startswith("Failed to check iptables rules: Unexpected error in firewall.py:")
    assert "ZeroDivisionError" in fault
    assert again == "iptables rules are checked again"
