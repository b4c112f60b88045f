"""Leases, config, allocation and the table of leases, against models that look at everything."""

from __future__ import annotations

import json
import random
from ipaddress import IPv4Network

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from flannelpy.addressing.addresses import special_use_in
from flannelpy.errors import ConfigError, OutOfSubnets
from flannelpy.registry.base import PERMANENT, Changes, Deleted, KeyValue, Put, Schema, Snapshot
from flannelpy.subnet.allocator import free_subnets, pick_subnet
from flannelpy.subnet.config import NetworkConfig, parse
from flannelpy.subnet.lease import Lease, LeaseAttrs, format_key, parse_key
from flannelpy.subnet.lease_table import (
    LeaseAdded,
    LeaseEvent,
    LeaseRemoved,
    LeaseTable,
    Overlapping,
    OwnEvent,
    SameIPElsewhere,
    Update,
)

NETWORKS = st.builds(
    lambda at, length: IPv4Network((at, length), strict=False), st.integers(0, 2**32 - 1), st.integers(0, 32)
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
ATTRS = st.builds(LeaseAttrs, st.ip_addresses(v=4), st.text(max_size=8).filter(str.isprintable), JSON)


# Leases


@given(ATTRS)
def test_a_value_reads_back_equal(attrs: LeaseAttrs) -> None:
    text = attrs.encode()
    assert LeaseAttrs.decode(text) == attrs
    assert LeaseAttrs.decode(text).encode() == text


@given(ATTRS, st.dictionaries(st.text(min_size=1, max_size=5), JSON, max_size=3))
def test_keys_of_other_versions_are_ignored(attrs: LeaseAttrs, others: dict[str, object]) -> None:
    known = json.loads(attrs.encode())
    unknown = {f"x{key}": value for key, value in others.items()}
    assert LeaseAttrs.decode(json.dumps(unknown | known)) == attrs


VALUES = (
    st.text()
    | JSON.map(json.dumps)
    | st.dictionaries(
        st.sampled_from(["PublicIP", "publicip", "BackendType", "BackendData"]), JSON | st.just("1.2.3.4")
    ).map(json.dumps)
)


@given(VALUES)
def test_any_value_is_read_or_refused_with_a_value_error(text: str) -> None:
    try:
        attrs = LeaseAttrs.decode(text)
    except ValueError:
        return
    assert LeaseAttrs.decode(attrs.encode()) == attrs


@given(NETWORKS)
def test_a_key_reads_back_equal(subnet: IPv4Network) -> None:
    assert parse_key(format_key(subnet)) == subnet


KEY_LIKE = st.from_regex(r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}-\d{1,2}", fullmatch=True)


@given(st.text() | KEY_LIKE | NETWORKS.map(format_key))
def test_only_keys_that_would_be_written_so_are_read(name: str) -> None:
    try:
        subnet = parse_key(name)
    except ValueError:
        return
    assert format_key(subnet) == name


# Config


@st.composite
def small_configs(draw: st.DrawFn) -> NetworkConfig:
    """Networks of 4 to 128 subnets, often with bounds, also at both ends of the address space."""
    length = draw(st.integers(18, 28))
    subnet_len = draw(st.integers(length + 2, min(30, length + 7)))
    network = IPv4Network(
        (draw(st.integers(1 << 24, 2**32 - 1) | st.sampled_from([1 << 24, 2**32 - 1])), length), strict=False
    )
    size = 1 << (32 - subnet_len)
    blocks = 1 << (subnet_len - length)
    low, high = sorted(draw(st.tuples(st.integers(0, blocks - 1), st.integers(0, blocks - 1))))
    keys: dict[str, object] = {"Network": str(network), "SubnetLen": subnet_len}
    if draw(st.booleans()):
        keys["SubnetMin"] = str(network.network_address + low * size)
        keys["SubnetMax"] = str(network.network_address + high * size)
    try:
        return parse(json.dumps(keys))
    except ConfigError:
        assert special_use_in(network)
        reject()


@given(small_configs())
def test_a_config_comes_back_from_what_it_was_read_as(config: NetworkConfig) -> None:
    keys = {
        "Network": str(config.network),
        "SubnetLen": config.subnet_len,
        "SubnetMin": str(config.subnet_min),
        "SubnetMax": str(config.subnet_max),
    }
    assert parse(json.dumps(keys)) == config


ODD = (
    JSON
    | NETWORKS.map(str)
    | st.ip_addresses(v=4).map(str)
    | st.integers(-1, 40)
    | st.sampled_from(["10.0.0.0/8", "0.0.0.0/0", "255.255.255.0/24", "10.0.1.0", "11.0.0.0/33", "1.2.3.4/ 8"])
)
CONFIG_KEYS = st.sampled_from(
    ["Network", "SubnetLen", "SubnetMin", "SubnetMax", "Backend", "network", "Other", "EnableIPv4", "IPv6Network"]
)


@given(
    st.text() | JSON.map(json.dumps) | st.dictionaries(CONFIG_KEYS, ODD, max_size=5).map(json.dumps),
    st.sampled_from(Schema),
)
def test_any_text_is_a_sound_config_or_refused_with_a_config_error(text: str, schema: Schema) -> None:
    try:
        config = parse(text, schema)
    except ConfigError:
        return
    assert not special_use_in(config.network)
    assert config.network.prefixlen >= 8
    assert config.network.prefixlen + 2 <= config.subnet_len <= 30
    for bound in (config.subnet_min, config.subnet_max):
        assert IPv4Network((bound, config.subnet_len)).subnet_of(config.network)
    assert config.subnet_min <= config.subnet_max
    assert config.backend.type == config.backend.type.lower()


# Allocation


@st.composite
def crowded(draw: st.DrawFn) -> tuple[NetworkConfig, list[IPv4Network]]:
    """A config, and leases in its network, around it and elsewhere, that may overlap each other."""
    config = draw(small_configs())
    first, last = int(config.network.network_address), int(config.network.broadcast_address)
    near = st.builds(
        lambda at, length: IPv4Network((at, length), strict=False),
        st.integers(max(first - 300, 0), min(last + 300, 2**32 - 1)),
        st.sampled_from([config.subnet_len] * 4 + [config.subnet_len - 1, config.subnet_len + 1, 32, 16]),
    )
    blocks = list(config.network.subnets(new_prefix=config.subnet_len))
    held = draw(st.sets(st.sampled_from(blocks)))
    return config, [*held, *draw(st.lists(near | NETWORKS.filter(lambda net: net.prefixlen > 4), max_size=6))]


def all_free(config: NetworkConfig, taken: list[IPv4Network]) -> list[IPv4Network]:
    """By looking at each subnet and each lease."""
    return [
        subnet
        for subnet in config.network.subnets(new_prefix=config.subnet_len)
        if config.subnet_min <= subnet.network_address <= config.subnet_max and not any(map(subnet.overlaps, taken))
    ]


@given(crowded())
def test_free_is_what_a_look_at_everything_finds(case: tuple[NetworkConfig, list[IPv4Network]]) -> None:
    config, taken = case
    assert list(free_subnets(config, taken)) == all_free(config, taken)


@given(crowded(), st.none() | NETWORKS, st.integers(0))
def test_a_pick_is_free_and_there_is_one_while_anything_is(
    case: tuple[NetworkConfig, list[IPv4Network]], previous: IPv4Network | None, seed: int
) -> None:
    config, taken = case
    free = all_free(config, taken)
    if free:
        assert pick_subnet(config, taken, previous, random.Random(seed)) in free[:100] + [previous] * (previous in free)
    else:
        with pytest.raises(OutOfSubnets):
            pick_subnet(config, taken, previous, random.Random(seed))


@given(crowded(), st.data())
def test_the_last_run_s_subnet_is_picked_if_it_is_free(
    case: tuple[NetworkConfig, list[IPv4Network]], data: st.DataObject
) -> None:
    config, taken = case
    free = all_free(config, taken)
    if free:
        previous = data.draw(st.sampled_from(free))
        assert pick_subnet(config, taken, previous, random.Random(0)) == previous


@given(small_configs(), st.integers(0))
def test_hosts_that_come_one_after_the_other_fill_the_range_without_overlap(config: NetworkConfig, seed: int) -> None:
    rng = random.Random(seed)
    taken: list[IPv4Network] = []
    expected = all_free(config, [])
    for _ in expected:
        taken.append(pick_subnet(config, taken, None, rng))
    assert sorted(taken) == expected


# The table of leases

OWN = IPv4Network("11.0.59.0/24")
NAMES = st.sampled_from([format_key(OWN), "11.0.101.0-24", "11.0.55.0-24", "11.0.7.0-25", "11.0.7.0-24", "rubbish", ""])
STORED_VALUES = st.sampled_from(
    ['{"PublicIP":"1.1.1.1"}', '{"PublicIP":"2.2.2.2"}', '{"PublicIP":"1.1.1.1","BackendType":"vxlan"}', "x", "{}"]
)
STEPS = st.lists(
    st.tuples(st.just("put"), NAMES, STORED_VALUES)
    | st.tuples(st.just("remove"), NAMES, st.just(""))
    # The store reports the changes meanwhile one by one, or by a new snapshot.
    | st.tuples(st.sampled_from(["changes", "snapshot"]), st.just(""), st.just("")),
    max_size=30,
)


class Model:
    """The store, and what a host that sees everything would know about the others."""

    def __init__(self) -> None:
        self.stored: dict[str, str] = {}
        self.known: dict[IPv4Network, LeaseAttrs] = {}
        self.changes: list[Put | Deleted] = []

    def put(self, name: str, value: str) -> None:
        self.stored[name] = value
        self.changes.append(Put(KeyValue(name, value, PERMANENT, 1, 1)))

    def remove(self, name: str) -> None:
        if self.stored.pop(name, None) is not None:
            self.changes.append(Deleted(name))

    def learn(self, name: str, value: str | None) -> None:
        """A malformed value leaves what was known before; None is a removal."""
        try:
            subnet = parse_key(name)
            attrs = None if value is None else LeaseAttrs.decode(value)
        except ValueError:
            return
        if attrs is None:
            self.known.pop(subnet, None)
        elif subnet != OWN:
            self.known[subnet] = attrs

    def learn_changes(self) -> Changes:
        seen = Changes(tuple(self.changes), 1)
        for change in self.changes:
            if isinstance(change, Put):
                self.learn(change.entry.name, change.entry.value)
            else:
                self.learn(change.name, None)
        self.changes.clear()
        return seen

    def learn_snapshot(self) -> Snapshot:
        for subnet in [subnet for subnet in self.known if format_key(subnet) not in self.stored]:
            del self.known[subnet]
        for name, value in self.stored.items():
            self.learn(name, value)
        self.changes.clear()
        return Snapshot(tuple(KeyValue(name, value, PERMANENT, 1, 1) for name, value in self.stored.items()), 1)


def replay(view: dict[IPv4Network, LeaseAttrs], events: list[LeaseEvent]) -> None:
    """Carry events over into ``view``: each has to change something."""
    for event in events:
        if isinstance(event, LeaseRemoved):
            del view[event.subnet]
        else:
            assert view.get(event.lease.subnet) != event.lease.attrs
            view[event.lease.subnet] = event.lease.attrs


def own_state(events: list[OwnEvent]) -> LeaseAttrs | None:
    last = events[-1]
    return last.lease.attrs if isinstance(last, LeaseAdded) else None


@given(STEPS)
def test_events_lead_to_what_the_store_holds(steps: list[tuple[str, str, str]]) -> None:
    model, table = Model(), LeaseTable(OWN)
    view: dict[IPv4Network, LeaseAttrs] = {}
    for step, name, value in [*steps, ("snapshot", "", "")]:
        update = Update()
        if step == "put":
            model.put(name, value)
        elif step == "remove":
            model.remove(name)
        elif step == "changes":
            update = table.apply(model.learn_changes())
        else:
            update = table.replace(model.learn_snapshot())
            own = model.stored.get(format_key(OWN))
            if own is None:
                assert update.own == [LeaseRemoved(OWN)]
            elif own.startswith('{"'):
                assert own_state(update.own) == LeaseAttrs.decode(own)
        replay(view, update.events)
        if step in ("changes", "snapshot"):
            assert view == model.known
        assert all(subnet_of(event) != OWN for event in update.events)
        assert all(subnet_of(event) == OWN for event in update.own)


def subnet_of(event: OwnEvent) -> IPv4Network:
    return event.lease.subnet if isinstance(event, LeaseAdded | SameIPElsewhere | Overlapping) else event.subnet


@given(STEPS)
def test_malformed_entries_are_logged_once_however_often_they_are_listed(steps: list[tuple[str, str, str]]) -> None:
    model, table = Model(), LeaseTable(OWN)
    for step, name, value in steps:
        if step == "put":
            model.put(name, value)
        elif step == "remove":
            model.remove(name)
    listed = model.learn_snapshot()
    malformed = 0
    for entry in listed.entries:
        try:
            Lease.from_entry(entry)
        except ValueError:
            malformed += 1
    assert len(table.replace(listed).ignored) == malformed
    assert table.replace(listed).ignored == []
