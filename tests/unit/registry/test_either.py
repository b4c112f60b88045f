"""-etcd-api=auto on two fake stores: which one is used, when that is decided, and what is logged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from support.fakes import FakeRegistry
from support.fakes_clock import run

from flannelpy.errors import ApiSwitchedOff, ConfigError, KeyNotFound, RegistryUnavailable
from flannelpy.registry.base import Schema
from flannelpy.registry.either import EitherRegistry

NAME = "11.0.1.0-24"
TTL = 60


@pytest.fixture(autouse=True)
def _whole_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")


class Failing(FakeRegistry):
    """A store whose every read of the config fails by ``error``."""

    error: Exception = ApiSwitchedOff("the v2 API is switched off")

    async def read_config(self) -> str:
        if self._config:
            return await super().read_config()
        raise self.error


class Stores:
    def __init__(self, v2_class: type[FakeRegistry] = FakeRegistry) -> None:
        clock = asyncio.get_running_loop().time
        self.v2, self.v3 = v2_class(clock), FakeRegistry(clock, Schema.V3)
        self.registry = EitherRegistry(self.v2, self.v3)

    async def used(self) -> str:
        """Which store gets a lease; both get a chance to say more in the log."""
        await self.registry.create(NAME, "a", TTL)
        await asyncio.sleep(1)
        stores = {"v2": self.v2, "v3": self.v3}
        return " ".join([name for name, store in stores.items() if (await store.snapshot()).entries])


def play(scenario: Callable[[Stores], Awaitable[None]], v2_class: type[FakeRegistry] = FakeRegistry) -> None:
    async def whole() -> None:
        await scenario(Stores(v2_class))

    run(whole())


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message.split(":")[0] for message in caplog.messages]


def test_v2_is_used_while_it_has_a_config(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(stores: Stores) -> None:
        stores.v2.set_config("two")
        assert await stores.registry.read_config() == "two"
        assert (stores.registry.schema, stores.registry.relist_seconds) == (Schema.V2, 300)
        assert await stores.used() == "v2"

    play(scenario)
    assert lines(caplog) == ["Found network config in etcd v2"]


def test_if_both_have_a_config_v2_is_used_and_one_line_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(stores: Stores) -> None:
        stores.v2.set_config("two")
        stores.v3.set_config("three")
        for _ in range(2):
            assert await stores.registry.read_config() == "two"
        assert await stores.used() == "v2"
        assert await stores.registry.read_config() == "two"
        await stores.registry.snapshot()
        await asyncio.sleep(1)

    play(scenario)
    assert lines(caplog) == ["Found network config in etcd v2", "Found network config in etcd v3 as well"]


def test_a_v3_that_does_not_answer_concerns_no_host_whose_config_is_in_v2(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(stores: Stores) -> None:
        stores.v2.set_config("two")
        stores.v3.go_down()
        assert await stores.registry.read_config() == "two"
        await stores.registry.create(NAME, "a", TTL)
        await asyncio.sleep(1)

    play(scenario)
    assert lines(caplog) == ["Found network config in etcd v2"]


@pytest.mark.parametrize("v2_class", [FakeRegistry, Failing], ids=["key not found", "API switched off"])
def test_v3_is_used_if_v2_answers_that_it_has_no_config(
    v2_class: type[FakeRegistry], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(stores: Stores) -> None:
        stores.v3.set_config("three")
        assert await stores.registry.read_config() == "three"
        assert (stores.registry.schema, stores.registry.relist_seconds) == (Schema.V3, 3600)
        assert await stores.used() == "v3"

    play(scenario, v2_class)
    assert lines(caplog) == ["Found network config in etcd v3"]


def test_no_answer_of_v2_decides_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(stores: Stores) -> None:
        stores.v3.set_config("three")
        stores.v2.go_down()
        with pytest.raises(RegistryUnavailable) as caught:
            await stores.registry.read_config()
        assert not isinstance(caught.value, ApiSwitchedOff)
        with pytest.raises(RegistryUnavailable):
            await stores.registry.create(NAME, "a", TTL)
        stores.v2.come_up()
        assert await stores.registry.read_config() == "three"

    play(scenario)
    assert lines(caplog) == ["Found network config in etcd v3"]


def test_a_config_that_v2_had_is_not_gone_while_an_endpoint_does_not_answer() -> None:
    async def scenario(stores: Stores) -> None:
        for store, config in ((stores.v2, "two"), (stores.v3, "three")):
            store.set_config(config)
        await stores.registry.read_config()
        stores.v2.set_config(None)
        stores.v2.error = ApiSwitchedOff("off at one of two", is_certain=False)  # type: ignore[attr-defined]
        with pytest.raises(RegistryUnavailable, match="off at one of two"):
            await stores.registry.read_config()
        stores.v2.error = ApiSwitchedOff("off")  # type: ignore[attr-defined]
        assert await stores.registry.read_config() == "three"

    play(scenario, Failing)


def test_a_config_that_v2_cannot_show_decides_nothing() -> None:
    class Directory(Failing):
        error = ConfigError("config is a directory")

    async def scenario(stores: Stores) -> None:
        stores.v3.set_config("three")
        with pytest.raises(ConfigError):
            await stores.registry.read_config()

    play(scenario, Directory)


def test_no_answer_of_v3_is_waited_for() -> None:
    async def scenario(stores: Stores) -> None:
        stores.v3.go_down()
        with pytest.raises(RegistryUnavailable, match=r"down.*v3; the v2 API has no network config"):
            await stores.registry.read_config()

    play(scenario)


@pytest.mark.parametrize(
    ("v2_class", "cause"),
    [(FakeRegistry, "v2: config: key not found"), (Failing, "v2: the v2 API is switched off")],
)
def test_without_any_config_the_error_names_both(v2_class: type[FakeRegistry], cause: str) -> None:
    async def scenario(stores: Stores) -> None:
        for call in (stores.registry.read_config(), stores.registry.snapshot()):
            with pytest.raises(KeyNotFound, match=f"{cause}; v3: config: key not found"):
                await call

    play(scenario, v2_class)


def test_each_reading_of_the_config_decides_again_until_leases_are_used(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(stores: Stores) -> None:
        stores.v3.set_config("three")
        assert await stores.registry.read_config() == "three"
        stores.v2.set_config("two")
        assert await stores.registry.read_config() == "two"
        assert await stores.used() == "v2"
        stores.v2.set_config(None)
        with pytest.raises(KeyNotFound, match=r"^config: key not found$"):
            await stores.registry.read_config()
        assert (await stores.registry.snapshot()).entries

    play(scenario)
    assert lines(caplog) == [
        "Found network config in etcd v3",
        "Found network config in etcd v2",
        "Found network config in etcd v3 as well",
    ]


def test_commands_without_a_config_of_their_own_decide_on_first_use() -> None:
    async def scenario(stores: Stores) -> None:
        stores.v3.set_config("three")
        entry = await stores.v3.create(NAME, "a", TTL)
        assert [found.version for found in (await stores.registry.snapshot()).entries] == [entry.version]
        stores.v2.set_config("two")
        await stores.registry.compare_and_delete(NAME, entry.version)
        assert not (await stores.v3.snapshot()).entries

    play(scenario)


def test_every_call_goes_to_the_chosen_store() -> None:
    async def scenario(stores: Stores) -> None:
        stores.v3.set_config("three")
        await stores.registry.read_config()
        cursor = (await stores.registry.snapshot()).cursor
        first = await stores.registry.create(NAME, "a", TTL)
        second = await stores.registry.compare_and_swap(NAME, "b", TTL, first.version)
        third = await stores.registry.renew(NAME, "b", TTL, second.version)
        await stores.registry.compare_and_delete(NAME, third.version)
        assert len((await stores.registry.watch(cursor, 1)).changes) == len((await stores.v3.watch(cursor, 1)).changes)
        stores.v3.set_config("another")
        await stores.registry.wait_for_config_change(1)

    play(scenario)


def test_a_change_of_the_config_is_waited_for_before_there_is_one() -> None:
    async def scenario(stores: Stores) -> None:
        began = asyncio.get_running_loop().time()
        await stores.registry.wait_for_config_change(30)
        assert asyncio.get_running_loop().time() - began == 30

    play(scenario)


def test_close_ends_the_calls_to_both() -> None:
    async def scenario(stores: Stores) -> None:
        stores.v2.set_config("two")
        await stores.registry.snapshot()
        await stores.registry.close()
        for store in (stores.v2, stores.v3):
            with pytest.raises(RegistryUnavailable, match="closed"):
                await store.snapshot()

    play(scenario)
