"""A host that starts with another public IP than the one its lease has, on a clock that jumps."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv4Network

import pytest
from support.fakes import FakeRegistry
from support.fakes_clock import LoopClock, run
from support.lease_world import World, entries

from flannelpy.addressing.surroundings import Surroundings
from flannelpy.errors import HostError, LeaseLost
from flannelpy.leasing.manager import SubnetManager
from flannelpy.leasing.retry import LONGEST_PAUSE
from flannelpy.subnet.config import NetworkConfig, parse
from flannelpy.subnet.lease import HostIdentity, Lease, LeaseAttrs, is_host_id
from flannelpy.subnet.lease_policy import CLAIM_SECONDS

FORMER, NEW, OTHER = (IPv4Address(f"172.17.8.{number}") for number in (101, 151, 102))
SUBNET, NAME = IPv4Network("11.0.59.0/24"), "11.0.59.0-24"
CONFIG = parse('{"Network":"11.0.0.0/16"}')
DAY = 86400
MAC = {"VtepMAC": "02:00:00:00:00:07"}
US, THEM = "us", "them"


class Machine:
    """A host with an address and a host ID; ``saw`` are the public IPs under which it has seen other leases."""

    def __init__(self, registry: FakeRegistry, public_ip: IPv4Address = NEW, host_id: str = US, seed: int = 1) -> None:
        self.registry = registry
        self.host_identity = HostIdentity(public_ip, host_id)
        self.manager = SubnetManager(registry, LoopClock(), random.Random(seed), self.host_identity)

    async def acquire(
        self, previous: IPv4Network | None = SUBNET, config: NetworkConfig = CONFIG, around: Surroundings | None = None
    ) -> Lease:
        def describe(found: LeaseAttrs | None) -> LeaseAttrs:
            return LeaseAttrs(
                self.host_identity.public_ip, "vxlan", found.backend_data if found else {"VtepMAC": "new"}
            )

        return await self.manager.acquire(config, describe, previous, *([around] if around else []))

    async def follow(self) -> None:
        async def apply(_: object) -> None:
            pass

        await self.manager.watch(apply)


def value(
    public_ip: IPv4Address = FORMER, host_id: str = US, claim: bool = False, mac: dict[str, str] | None = None
) -> str:
    return LeaseAttrs(public_ip, "vxlan", mac or MAC, host_id, claim).encode()


def play(scenario: Callable[[FakeRegistry, Machine], Awaitable[None]]) -> None:
    async def whole() -> None:
        registry = FakeRegistry(LoopClock().now, World.schema)
        await scenario(registry, Machine(registry))

    run(whole())


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize("ttl", [DAY, None])
def test_the_subnet_and_its_backend_data_are_kept(ttl: int | None, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(registry: FakeRegistry, machine: Machine) -> None:
        before = registry.put_raw(NAME, value(), ttl)
        lease = await machine.acquire()
        assert now() == pytest.approx(CLAIM_SECONDS, abs=0.1)
        [entry] = (await entries(registry)).values()
        assert (entry.name, entry.value, entry.lifetime.seconds) == (NAME, value(NEW), ttl)
        assert (entry.created, entry.version) == (before.created, lease.version)

    play(scenario)
    assert caplog.messages == [
        "Lease (11.0.59.0/24) of this host has its former public IP (172.17.8.101); waiting 3 s for another host"
        " to object",
        "Changed public IP of lease (11.0.59.0/24) from 172.17.8.101 to 172.17.8.151",
        "Subnet lease acquired: 11.0.59.0/24",
    ]


def test_the_claim_has_the_former_public_ip_and_an_identity_of_its_own() -> None:
    async def scenario(registry: FakeRegistry, machine: Machine) -> None:
        registry.put_raw(NAME, value(), DAY)
        acquiring = asyncio.create_task(machine.acquire())
        await asyncio.sleep(CLAIM_SECONDS / 2)
        claim = LeaseAttrs.decode((await entries(registry))[NAME].value)
        assert claim == LeaseAttrs(FORMER, "vxlan", MAC)
        assert claim.claim
        assert claim.host_id != US
        assert is_host_id(claim.host_id)
        await acquiring

    play(scenario)


@pytest.mark.parametrize("host_id", [US, "h" * 64])
def test_each_try_has_another_identity_that_is_known_again(host_id: str) -> None:
    host_identity = HostIdentity(NEW, host_id)
    tries = [host_identity.claimant(number) for number in (0, 1, (1 << 32) - 1)]
    assert len({*tries, host_id}) == 4
    for claimant in tries:
        assert is_host_id(claimant)
        assert host_identity.is_from(LeaseAttrs(FORMER, host_id=claimant, claim=True))
        assert not host_identity.is_from(LeaseAttrs(FORMER, host_id=claimant))
        assert not HostIdentity(NEW, "another").is_from(LeaseAttrs(FORMER, host_id=claimant, claim=True))
        assert not HostIdentity(NEW).is_from(LeaseAttrs(FORMER, host_id=claimant, claim=True))


@pytest.mark.parametrize("ttl", [DAY, None])
def test_a_live_clone_objects_and_the_newcomer_leases_another_subnet(
    ttl: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(registry: FakeRegistry, machine: Machine) -> None:
        clone = Machine(registry, FORMER, seed=2)
        registry.put_raw(NAME, value(), ttl)
        await clone.acquire()
        following = asyncio.create_task(clone.follow())
        await asyncio.sleep(1)
        lease = await machine.acquire()
        assert lease.subnet != SUBNET
        assert now() < 1 + CLAIM_SECONDS + 1
        found = await entries(registry)
        assert found[NAME].value == value()
        assert len(found) == 2
        assert not following.done()
        following.cancel()

    play(scenario)
    assert (
        "another host with our host ID (us) asks for our lease 11.0.59.0/24: one of the two is a clone; give each its"
        " own by -host-id or /etc/machine-id" in caplog.messages
    )
    assert (
        "Lease (11.0.59.0/24) is held by another host (172.17.8.101) with our host ID (us); leasing another subnet. If"
        " this machine is a clone, give it its own by -host-id or /etc/machine-id" in caplog.messages
    )


def test_a_try_that_was_interrupted_is_made_again() -> None:
    """The process was killed, or the store went away, while it waited."""

    async def scenario(registry: FakeRegistry, machine: Machine) -> None:
        registry.put_raw(NAME, value(), DAY)
        killed = asyncio.create_task(machine.acquire())
        await asyncio.sleep(1)
        killed.cancel()
        acquiring = asyncio.create_task(Machine(registry, seed=3).acquire())
        await asyncio.sleep(1)
        registry.go_down()
        await asyncio.sleep(60)
        assert not acquiring.done()
        registry.come_up()
        began = now()
        assert (await acquiring).subnet == SUBNET
        assert now() - began <= LONGEST_PAUSE + CLAIM_SECONDS + 0.1
        assert (await entries(registry))[NAME].value == value(NEW)

    play(scenario)


def test_of_two_clones_that_both_have_new_addresses_one_keeps_the_subnet() -> None:
    async def scenario(registry: FakeRegistry, machine: Machine) -> None:
        registry.put_raw(NAME, value(), DAY)
        other = Machine(registry, OTHER, seed=2)
        first = asyncio.create_task(machine.acquire())
        await asyncio.sleep(1)
        leases = await asyncio.gather(first, other.acquire())
        assert [lease.subnet == SUBNET for lease in leases] == [False, True]
        assert len(await entries(registry)) == 2

    play(scenario)


@pytest.mark.parametrize(
    "stored",
    [
        value(host_id=""),
        value(host_id=THEM),
        value(host_id="us:0000000a"),
        value(host_id="them:0000000a", claim=True),
        "rubbish",
    ],
)
def test_a_lease_that_is_not_of_our_host_id_is_not_ours(stored: str) -> None:
    async def scenario(registry: FakeRegistry, machine: Machine) -> None:
        before = registry.put_raw(NAME, stored, DAY)
        assert (await machine.acquire()).subnet != SUBNET
        assert now() == 0
        after = (await entries(registry))[NAME]
        assert (after.value, after.version) == (stored, before.version)

    play(scenario)


@pytest.mark.parametrize("previous", [None, IPv4Network("11.0.60.0/24")])
def test_our_host_id_on_another_subnet_than_the_files_is_a_clones(previous: IPv4Network | None) -> None:
    """Virtual machines of one image have one machine ID, and each its own address and lease."""

    async def scenario(registry: FakeRegistry, machine: Machine) -> None:
        registry.put_raw(NAME, value(), DAY)
        lease = await machine.acquire(previous)
        assert lease.subnet == (previous or lease.subnet) != SUBNET
        assert now() == 0
        assert (await entries(registry))[NAME].value == value()

    play(scenario)


def test_of_two_leases_with_our_host_id_the_files_is_kept() -> None:
    async def scenario(registry: FakeRegistry, machine: Machine) -> None:
        registry.put_raw("11.0.7.0-24", value(OTHER), DAY)
        registry.put_raw(NAME, value(), DAY)
        registry.put_raw("11.0.77.0-24", value(), DAY)
        assert (await machine.acquire()).subnet == SUBNET
        found = await entries(registry)
        assert [found[name].value for name in ("11.0.7.0-24", "11.0.77.0-24")] == [value(OTHER), value()]

    play(scenario)


def test_a_lease_of_the_new_address_that_is_ours_comes_first() -> None:
    async def scenario(registry: FakeRegistry, machine: Machine) -> None:
        registry.put_raw("11.0.7.0-24", value(NEW), DAY)
        registry.put_raw(NAME, value(), DAY)
        assert str((await machine.acquire()).subnet) == "11.0.7.0/24"
        assert now() == 0

    play(scenario)


def test_a_reservation_for_the_new_address_comes_first() -> None:
    async def scenario(registry: FakeRegistry, machine: Machine) -> None:
        registry.put_raw("11.0.7.0-24", value(NEW, THEM), None)
        registry.put_raw(NAME, value(), DAY)
        assert str((await machine.acquire()).subnet) == "11.0.7.0/24"

    play(scenario)


@pytest.mark.parametrize("pause", [0.0, 1.0, CLAIM_SECONDS + 1, 60.0])
def test_two_hosts_that_have_swapped_their_addresses_keep_their_subnets(pause: float) -> None:
    async def scenario(registry: FakeRegistry, machine: Machine) -> None:
        there = IPv4Network("11.0.7.0/24")
        registry.put_raw(NAME, value(OTHER), DAY)
        registry.put_raw("11.0.7.0-24", value(NEW, "a-them"), DAY)
        other = Machine(registry, OTHER, "a-them", seed=2)
        first = asyncio.create_task(machine.acquire())
        await asyncio.sleep(pause)
        leases = await asyncio.gather(first, other.acquire(there))
        assert [lease.subnet for lease in leases] == [SUBNET, there]
        found = {name: LeaseAttrs.decode(entry.value).public_ip for name, entry in (await entries(registry)).items()}
        assert found == {NAME: NEW, "11.0.7.0-24": OTHER}
        following = [asyncio.create_task(one.follow()) for one in (machine, other)]
        await asyncio.sleep(120)
        assert not any(task.done() for task in following)
        for task in following:
            task.cancel()

    play(scenario)


def test_a_holder_that_was_out_of_sight_leaves_afterwards() -> None:
    async def scenario(registry: FakeRegistry, machine: Machine) -> None:
        clone = Machine(registry, FORMER, seed=2)
        registry.put_raw(NAME, value(), DAY)
        await clone.acquire()
        assert (await machine.acquire()).subnet == SUBNET
        with pytest.raises(LeaseLost, match=r"is held by 172\.17\.8\.151 now, not by us"):
            await clone.follow()

    play(scenario)


def test_a_subnet_that_no_longer_fits_is_left_alone() -> None:
    async def scenario(registry: FakeRegistry, machine: Machine) -> None:
        registry.put_raw(NAME, value(), DAY)
        lease = await machine.acquire(config=parse('{"Network":"11.0.0.0/16","SubnetLen":25}'))
        assert lease.subnet.prefixlen == 25
        assert (await entries(registry))[NAME].value == value()

    play(scenario)


def test_a_new_address_inside_the_own_subnet_is_refused_before_any_claim() -> None:
    async def scenario(registry: FakeRegistry, machine: Machine) -> None:
        inside = Machine(registry, IPv4Address("11.0.59.9"))
        before = registry.put_raw(NAME, value(), DAY)
        around = Surroundings(underlay=frozenset([IPv4Address("11.0.59.9")]))
        with pytest.raises(HostError, match=r"11\.0\.59\.9 lies inside our own subnet 11\.0\.59\.0/24"):
            await inside.acquire(around=around)
        assert (await entries(registry))[NAME].version == before.version

    play(scenario)


def test_a_lease_that_goes_while_it_is_claimed_is_created_again() -> None:
    async def scenario(registry: FakeRegistry, machine: Machine) -> None:
        registry.put_raw(NAME, value(), DAY)
        acquiring = asyncio.create_task(machine.acquire())
        await asyncio.sleep(1)
        registry.delete_raw(NAME)
        assert (await acquiring).subnet == SUBNET
        assert LeaseAttrs.decode((await entries(registry))[NAME].value).public_ip == NEW

    play(scenario)
