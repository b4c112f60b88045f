"""How a host acquires its lease: an existing one, the previous subnet, or a free one."""

from __future__ import annotations

import asyncio
import functools
import logging
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
from support.fakes import FakeRegistry
from support.lease_world import (
    ATTRS,
    CONFIG,
    LEASE_TTL,
    OUR_IP,
    OURS,
    OWN,
    OWN_NAME,
    SMALL,
    B,
    C,
    D,
    World,
    play,
)

from flannelpy.addressing.surroundings import Surroundings, surroundings
from flannelpy.errors import HostError, KeyExists
from flannelpy.leasing.retry import LONGEST_PAUSE
from flannelpy.registry.base import PERMANENT, KeyValue, expires_in
from flannelpy.subnet.config import NetworkConfig
from flannelpy.subnet.lease import Lease


def test_a_new_host_takes_a_free_subnet_for_a_day(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.1.0-24", B, 86400)
        own = await world.acquire()
        assert CONFIG.fits(own.subnet)
        assert own.subnet != IPv4Network("11.0.1.0/24")
        assert own.attrs == ATTRS
        name = f"{own.subnet.network_address}-24"
        assert (await world.entries())[name] == KeyValue(name, OURS, expires_in(LEASE_TTL), own.version, own.created)
        assert world.manager.own == own
        assert caplog.messages == [
            "Picking subnet in range 11.0.1.0 ... 11.0.255.0",
            f"Subnet lease acquired: {own.subnet}",
        ]

    play(scenario)


def test_a_lease_with_our_public_ip_is_ours_again_for_a_full_day(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.1.0-24", B, 86400)
        old = world.registry.put_raw("11.0.77.0-24", OURS, 100)
        own = await world.acquire(previous=OWN)
        assert own == Lease(IPv4Network("11.0.77.0/24"), ATTRS, expires_in(LEASE_TTL), old.version + 1, old.created)
        assert set(await world.entries()) == {"11.0.1.0-24", "11.0.77.0-24"}

    play(scenario)
    assert caplog.messages == [
        "Found lease (11.0.77.0/24) for current IP (172.17.8.101), reusing",
        "Subnet lease acquired: 11.0.77.0/24",
    ]


def test_a_key_whose_value_is_damaged_is_not_picked() -> None:
    """The previous subnet looked free, and its create failed for ever."""

    async def scenario(world: World) -> None:
        world.registry.put_raw(OWN_NAME, "", 86400)
        own = await world.acquire(previous=OWN)
        assert own.subnet != OWN

    play(scenario)


def test_a_malformed_own_lease_is_restored() -> None:
    async def scenario(world: World) -> None:
        async with world.running():
            damaged = world.registry.put_raw(OWN_NAME, "", None)
            await asyncio.sleep(2)
            entry = (await world.entries())[OWN_NAME]
            assert (entry.value, entry.version) == (OURS, damaged.version + 1)
            assert entry.lifetime.seconds is not None
            assert world.manager.own.version == entry.version

    play(scenario)


def test_a_reused_lease_gets_our_value_also_when_another_backend_wrote_it() -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.77.0-24", OURS[:-1] + ',"BackendType":"vxlan","BackendData":{"VtepMAC":"x"}}', 9)
        own = await world.acquire()
        assert own.attrs == ATTRS
        assert (await world.entries())["11.0.77.0-24"].value == OURS

    play(scenario)


def test_a_reservation_is_used_and_stays_one() -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw(OWN_NAME, OURS, None)
        async with world.running():
            assert world.manager.own.subnet == OWN
            assert world.manager.report().seconds_left is None
            version, created = world.manager.own.version, world.manager.own.created
            await asyncio.sleep(2 * LEASE_TTL)
            assert await world.entries() == {OWN_NAME: KeyValue(OWN_NAME, OURS, PERMANENT, version, created)}

    play(scenario)


def test_a_lease_that_no_longer_fits_the_config_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("10.1.7.0-24", OURS, 86400)
        await world.acquire(OWN)
        assert set(await world.entries()) == {OWN_NAME}

    play(scenario)
    assert caplog.messages == [
        "Found lease (10.1.7.0/24) for current IP (172.17.8.101) but not compatible with current config, deleting",
        "Picking subnet in range 11.0.1.0 ... 11.0.255.0",
        "Subnet lease acquired: 11.0.59.0/24",
    ]


def test_a_reservation_that_does_not_fit_the_config_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        reserved = world.registry.put_raw("10.1.7.0-24", OURS, None)
        await world.acquire(OWN)
        assert (await world.entries()).keys() == {"10.1.7.0-24", OWN_NAME}
        assert (await world.entries())["10.1.7.0-24"] == reserved

    play(scenario)
    assert caplog.messages[0] == (
        "Found lease (10.1.7.0/24) for current IP (172.17.8.101) but not compatible with current config,"
        " leaving the reservation alone"
    )


def test_of_two_leases_with_our_public_ip_the_one_that_fits_is_used() -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("10.1.7.0-24", OURS, 86400)
        world.registry.put_raw("11.0.77.0-24", OURS, 86400)
        assert (await world.acquire()).subnet == IPv4Network("11.0.77.0/24")
        assert set(await world.entries()) == {"11.0.77.0-24"}

    play(scenario)


def test_the_previous_subnet_is_leased_if_it_is_free() -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.60.0-24", B, 86400)
        assert (await world.acquire(OWN)).subnet == OWN

    play(scenario)


def test_the_previous_subnet_is_left_to_a_peer_that_holds_it() -> None:
    async def scenario(world: World) -> None:
        theirs = world.registry.put_raw(OWN_NAME, B, 86400)
        own = await world.acquire(OWN)
        assert own.subnet != OWN
        assert (await world.entries())[OWN_NAME] == theirs

    play(scenario)


def test_malformed_entries_do_not_prevent_a_lease() -> None:
    async def scenario(world: World) -> None:
        for name, value in [("rubbish", "x"), ("11.0.1.0-24", "{}"), ("11.0.2.0-99", OURS), ("11.0.3.5-24", B)]:
            world.registry.put_raw(name, value, 86400)
        assert (await world.acquire(OWN)).subnet == OWN

    play(scenario)


def test_the_subnets_of_dual_stack_leases_are_not_free() -> None:
    async def scenario(world: World) -> None:
        for name in ("11.0.0.64-26&fd00:0:0:1::-64", "11.0.0.192-26&fd00:0:0:3::-64"):
            world.registry.put_raw(name, B, 86400)
        own = await world.acquire(IPv4Network("11.0.0.64/26"), SMALL)
        assert own.subnet == IPv4Network("11.0.0.128/26")

    play(scenario)


class Racing(FakeRegistry):
    """A peer is faster with each of the first fifteen creates."""

    races = 15

    async def create(self, name: str, value: str, lease_ttl: int) -> KeyValue:
        if self.races:
            self.races -= 1
            self.put_raw(name, f'{{"PublicIP":"172.17.9.{self.races}"}}', lease_ttl)
        return await super().create(name, value, lease_ttl)


def test_losing_the_race_many_times_is_normal(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        own = await world.acquire(OWN)
        entries = await world.entries()
        assert len(entries) == 16
        assert [entry.value for entry in entries.values()].count(OURS) == 1
        assert entries[f"{own.subnet.network_address}-24"].value == OURS
        assert 0 < world.now() <= 15

    play(scenario, Racing)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    assert sum(message.startswith("Subnet lease acquired") for message in caplog.messages) == 1


class Changing(FakeRegistry):
    """Before each of the first three updates or deletes of an entry, a peer changes the entry."""

    races = 3

    def interfere(self, name: str) -> None:
        self.put_raw(name, OURS, 500)

    async def compare_and_swap(self, name: str, value: str, lease_ttl: int | None, version: int) -> KeyValue:
        if self.races:
            self.races -= 1
            self.interfere(name)
        return await super().compare_and_swap(name, value, lease_ttl, version)

    async def compare_and_delete(self, name: str, version: int) -> None:
        if self.races:
            self.races -= 1
            self.interfere(name)
        await super().compare_and_delete(name, version)


class Deleting(Changing):
    races = 1

    def interfere(self, name: str) -> None:
        self.delete_raw(name)


@pytest.mark.parametrize(("registry_class", "subnet"), [(Changing, "11.0.77.0/24"), (Deleting, "11.0.59.0/24")])
def test_a_lease_that_changes_while_it_is_taken_over_is_read_again(
    registry_class: type[FakeRegistry], subnet: str
) -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.77.0-24", OURS, 500)
        own = await world.acquire(OWN)
        assert own.subnet == IPv4Network(subnet)
        [entry] = (await world.entries()).values()
        assert Lease.from_entry(entry) == own

    play(scenario, registry_class)


@pytest.mark.parametrize("registry_class", [Changing, Deleting])
def test_a_lease_that_changes_while_it_is_given_up_is_read_again(registry_class: type[FakeRegistry]) -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("10.1.7.0-24", OURS, 500)
        await world.acquire(OWN)
        assert set(await world.entries()) == {OWN_NAME}

    play(scenario, registry_class)


def test_out_of_subnets_is_logged_once_and_retried(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        for name, value in [("11.0.0.64-26", B), ("11.0.0.128-26", C), ("11.0.0.192-26", D)]:
            world.registry.put_raw(name, value, 86400)
        acquiring = asyncio.create_task(world.acquire(config=SMALL))
        await asyncio.sleep(600)
        world.registry.delete_raw("11.0.0.128-26")
        assert (await acquiring).subnet == IPv4Network("11.0.0.128/26")
        assert world.now() <= 600 + LONGEST_PAUSE

    play(scenario)
    assert [message for message in caplog.messages if not message.startswith("Picking")] == [
        "Failed to acquire subnet: out of subnets: no /26 is free in the range 11.0.0.64 ... 11.0.0.192,"
        " there are 3 leases",
        "Subnet lease acquired: 11.0.0.128/26",
    ]


class Directories(FakeRegistry):
    """Some keys are directories: they are in no snapshot, and a create is refused."""

    names = frozenset({OWN_NAME, "11.0.0.64-26", "11.0.0.192-26"})

    async def create(self, name: str, value: str, lease_ttl: int) -> KeyValue:
        if name in self.names:
            raise KeyExists(f"{name}: key already exists")
        return await super().create(name, value, lease_ttl)


@pytest.mark.parametrize(("config", "previous"), [(CONFIG, OWN), (SMALL, IPv4Network("11.0.0.192/26")), (SMALL, None)])
def test_a_directory_where_a_lease_would_be_keeps_no_host_from_another_subnet(
    config: NetworkConfig, previous: IPv4Network | None
) -> None:
    async def scenario(world: World) -> None:
        async with asyncio.timeout(10):
            own = await world.acquire(previous, config)
        assert set(await world.entries()) == {f"{own.subnet.network_address}-{own.subnet.prefixlen}"}

    play(scenario, Directories)


def test_a_lost_reply_to_our_create_leads_to_one_lease() -> None:
    async def scenario(world: World) -> None:
        world.registry.lose_reply_of_next_write()
        own = await world.acquire()
        assert set(await world.entries()) == {f"{own.subnet.network_address}-24"}

    play(scenario)


@pytest.mark.parametrize("lease_ttl", [86400, None])
def test_a_lease_of_ours_that_an_earlier_one_overlaps_is_not_used_again(
    lease_ttl: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.59.128-25", B, None)
        world.registry.put_raw(OWN_NAME, OURS, lease_ttl)
        own = await world.acquire(OWN)
        assert not own.subnet.overlaps(OWN)
        assert (OWN_NAME in await world.entries()) == (lease_ttl is None)

    play(scenario)
    what = "deleting" if lease_ttl else "leaving the reservation alone"
    assert caplog.messages[0] == (
        "Found lease (11.0.59.0/24) for current IP (172.17.8.101) but it overlaps 11.0.59.128/25, which 172.17.8.102"
        f" leased earlier, {what}"
    )


def test_a_lease_of_ours_that_a_later_one_overlaps_is_used_again() -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw(OWN_NAME, OURS, 86400)
        world.registry.put_raw("11.0.59.128-25", B, None)
        assert (await world.acquire()).subnet == OWN

    play(scenario)


ETCD = IPv4Address("11.0.77.9")


def around(*addresses: str) -> Surroundings:
    return surroundings(
        [IPv4Interface(address) for address in addresses], [IPv4Interface("11.0.59.1/24")], OUR_IP, [ETCD]
    )


@pytest.mark.parametrize("value", [OURS, '{"PublicIP":"172.17.8.101","HostID":"x"}'])
@pytest.mark.parametrize("lease_ttl", [86400, None])
def test_a_lease_of_ours_around_our_own_address_is_refused(value: str, lease_ttl: int | None) -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.5.0-24", value, lease_ttl)
        before = await world.entries()
        with pytest.raises(HostError, match=r"^our address 11.0.5.7 lies inside our own subnet 11.0.5.0/24, .*-iface"):
            await world.manager.acquire(CONFIG, lambda _: ATTRS, None, around("11.0.5.7/24"))
        assert await world.entries() == before

    play(scenario)


def test_a_previous_subnet_around_our_own_address_is_refused_but_not_one_of_another_network() -> None:
    async def scenario(world: World) -> None:
        with pytest.raises(HostError, match=r"^our address 11.0.59.1 lies inside our own subnet 11.0.59.0/24"):
            await world.manager.acquire(CONFIG, lambda _: ATTRS, OWN, around("11.0.59.1/24"))
        assert await world.entries() == {}
        await world.manager.acquire(CONFIG, lambda _: ATTRS, IPv4Network("11.1.59.0/24"), around("11.1.59.1/24"))

    play(scenario)


def test_a_lease_of_ours_around_etcd_is_given_up() -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.77.0-24", OURS, 86400)
        own = await world.manager.acquire(CONFIG, lambda _: ATTRS, IPv4Network("11.0.77.0/24"), around())
        assert ETCD not in own.subnet
        assert len(await world.entries()) == 1

    play(scenario)


def test_a_new_subnet_contains_no_host_and_overlaps_no_connected_network() -> None:
    """Of 11.0.0.64/26, .128 and .192 one is left: a host, etcd, or a network of this host is in the others."""

    async def scenario(world: World, connected: str, public_ip: str, left: str) -> None:
        world.registry.put_raw("11.9.0.0-24", f'{{"PublicIP":"{public_ip}"}}', None)
        near = surroundings([], [IPv4Interface(connected)], OUR_IP, [])
        assert (await world.manager.acquire(SMALL, lambda _: ATTRS, None, near)).subnet == IPv4Network(left)

    for connected, public_ip, left in (
        ("11.0.0.65/27", "11.0.0.200", "11.0.0.128/26"),
        ("11.0.0.129/32", "11.0.0.64", "11.0.0.192/26"),
        ("11.0.0.129/25", "172.17.8.102", "11.0.0.64/26"),
    ):
        play(functools.partial(scenario, connected=connected, public_ip=public_ip, left=left))


@pytest.mark.parametrize("connected", ["11.0.0.0/25", "11.0.0.64/30"])
def test_a_network_that_this_host_is_connected_to_is_named_when_nothing_is_left(
    connected: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        for name in ("11.0.0.128-26", "11.0.0.192-26"):
            world.registry.put_raw(name, B, None)
        near = surroundings([], [IPv4Interface(connected)], OUR_IP, [])
        acquiring = asyncio.create_task(world.manager.acquire(SMALL, lambda _: ATTRS, None, near))
        await asyncio.sleep(5)
        acquiring.cancel()

    play(scenario)
    assert caplog.messages == [
        "Failed to acquire subnet: out of subnets: no /26 is free in the range 11.0.0.64 ... 11.0.0.192, there are 2"
        f" leases, and this host is connected to {connected}"
    ]


def test_the_subnet_of_the_last_run_is_taken_again_though_the_bridge_is_connected_to_it() -> None:
    async def scenario(world: World) -> None:
        assert (await world.manager.acquire(CONFIG, lambda _: ATTRS, OWN, around())).subnet == OWN

    play(scenario)


def test_the_previous_subnet_is_not_leased_if_it_contains_a_public_ip() -> None:
    async def scenario(world: World) -> None:
        world.registry.put_raw("11.0.1.0-24", '{"PublicIP":"11.0.59.77"}', None)
        assert (await world.manager.acquire(CONFIG, lambda _: ATTRS, OWN, around())).subnet != OWN

    play(scenario)
