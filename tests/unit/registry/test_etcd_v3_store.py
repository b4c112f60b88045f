"""The keys of a network in etcd v3, and when the config may differ from the one that was read."""

from __future__ import annotations

import asyncio

import pytest

from flannelpy.registry.etcd_v3_messages import Header, decoded
from flannelpy.registry.etcd_v3_store import Keys, Known


@pytest.mark.parametrize("prefix", ["/coreos.com/network", "/coreos.com/network/", "//coreos.com//x/../network/"])
def test_keys(prefix: str) -> None:
    keys = Keys(prefix)
    assert keys.config == "/coreos.com/network/config"
    assert keys.of("11.0.1.0-24") == "/coreos.com/network/subnets/11.0.1.0-24"
    assert {name: decoded(key) for name, key in keys.span.items()} == {
        "key": "/coreos.com/network/config",
        "range_end": "/coreos.com/network/subnets0",
    }


@pytest.mark.parametrize(
    ("key", "name"),
    [("/n/subnets/a", "a"), ("/n/subnets/", ""), ("/n/subnets/a/b", None), ("/n/config", None), ("/n/subnetsa", None)],
)
def test_only_direct_children_have_names(key: str, name: str | None) -> None:
    assert Keys("/n").name(key) == name


@pytest.mark.parametrize(
    ("prefix", "config"),
    [
        ("/", "/config"),
        ("///", "/config"),
        ("coreos.com/network", "coreos.com/network/config"),
        ("coreos.com/network/blue", "coreos.com/network/blue/config"),
        ("./a//b/../c/", "a/c/config"),
        ("a/..", "config"),
        (".", "config"),
        ("..", "../config"),
    ],
)
def test_a_key_has_the_leading_slash_that_the_prefix_has(prefix: str, config: str) -> None:
    """As of path.Join of Go, by which flanneld v0.20.2 makes keys; ``/`` is not added and not removed."""
    keys = Keys(prefix)
    subnets = f"{config.removesuffix('config')}subnets"
    assert keys.config == config
    assert keys.of("11.0.1.0-24") == f"{subnets}/11.0.1.0-24"
    assert keys.name(f"{subnets}/11.0.1.0-24") == "11.0.1.0-24"
    assert {name: decoded(key) for name, key in keys.span.items()} == {"key": config, "range_end": f"{subnets}0"}


async def returns(known: Known, seconds: float = 0.05) -> bool:
    """Whether a wait for a change returns."""
    waiting = asyncio.create_task(known.wait_for_config_change(seconds))
    await asyncio.wait([waiting], timeout=0.01)
    waiting.cancel()
    return waiting.done()


def test_a_change_is_reported_until_the_config_is_read() -> None:
    async def test() -> None:
        known = Known()
        known.note_read(5)
        known.note(Header(1, 9), 5)
        assert not await returns(known)
        known.note_config(10, 10)
        assert await returns(known)
        known.note_read(10)
        assert not await returns(known)
        known.note_config(11, 0)
        assert await returns(known)

    asyncio.run(test())


def test_after_a_failed_read_the_change_is_reported_again_after_the_seconds() -> None:
    async def test() -> None:
        known = Known()
        known.note_read(5)
        known.note(Header(1, 9), 6)
        assert await returns(known)
        assert not await returns(known)
        await asyncio.wait_for(known.wait_for_config_change(0.01), 5)

    asyncio.run(test())


def test_an_older_answer_and_one_of_another_cluster_change_nothing() -> None:
    async def test() -> None:
        known = Known()
        known.note_read(5)
        known.note(Header(1, 9), 5)
        known.note(Header(1, 8), 4)
        known.note(Header(2, 20), 20)
        assert (known.cluster, known.config) == (1, 5)
        assert not await returns(known)

    asyncio.run(test())


def test_a_lost_history_reports_another_config() -> None:
    async def test() -> None:
        known = Known()
        known.note_read(5)
        known.note(Header(1, 9), 5)
        known.forget(5)
        assert not await returns(known)
        known.forget(2)
        assert await returns(known)
        known.note(Header(2, 3), 2)
        assert (known.cluster, known.config) == (2, 2)

    asyncio.run(test())
