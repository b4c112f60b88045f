"""A cluster of etcd whose members fail in all ways at random, under hosts that must not notice."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import cycle
from typing import NamedTuple

from faults.backends import Backend
from lab import Daemon, EtcdMember, Lab, wait_for
from support.hosts import assert_in_order, leased_again, subnet_in_file, subnets_in_use
from support.mesh import unbroken_mesh

MEMBERS = 3
LEASE_TTL = 10
_LOOKS_APART = 0.2
_SHORT_SECONDS = (0.5, 4.0)
_OVER_TTL_SECONDS = (1.0, 5.0)
_CALM_SECONDS = (0.0, 2.0)
_RECOVERY_DEADLINE = 30
_LEASES_DEADLINE = 30


class Fault(NamedTuple):
    """How a member fails, and how it comes back while ``other`` is one that works."""

    begin: Callable[[EtcdMember], None]
    end: Callable[[EtcdMember, EtcdMember], None]


def _launch(member: EtcdMember, _: EtcdMember) -> None:
    """Alone it is not ready before a second one has come back."""
    member.launch()


#: Those that also two members may have at a time.
FAULTS = {
    "killed": Fault(EtcdMember.kill, _launch),
    "frozen": Fault(EtcdMember.pause, lambda member, _: member.resume()),
    "cut off": Fault(EtcdMember.cut, lambda member, _: member.mend()),
}
LOST = {"killed, its data lost": Fault(EtcdMember.kill, EtcdMember.rejoin)}


def seed() -> int:
    """Random, or FLANNELPY_SEED, to have the same faults again."""
    return int(os.environ.get("FLANNELPY_SEED") or random.randrange(1 << 32))


class Witness:
    """Looks whether every daemon runs and every host has the subnet that it began with, each its own."""

    def __init__(self, daemons: Sequence[Daemon]) -> None:
        self._subnets = {daemon: daemon.host.subnet() for daemon in daemons}
        assert len(set(self._subnets.values())) == len(daemons)

    def look(self) -> None:
        for daemon, subnet in self._subnets.items():
            assert daemon.process.poll() is None, f"flannelpy on {daemon.host.name} has ended"
            assert subnets_in_use(daemon) == {subnet}, daemon.host.name
            assert subnet_in_file(daemon.host) == subnet, daemon.host.name

    def look_for(self, seconds: float) -> None:
        """Look several times a second for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.look()
            time.sleep(_LOOKS_APART)


def endure(lab: Lab, seconds: float, backend: Backend) -> None:
    """Let members fail for so long, and assert that all hosts forward on and keep their subnets and leases.

    In turns one member and two at once, those for longer than a lease lasts.
    """
    number = seed()
    print(f"FLANNELPY_SEED={number}")
    rng = random.Random(number)
    lab.put_config(backend.config())
    daemons = lab.start_daemons("-iface=eth1", f"-subnet-lease-ttl={LEASE_TTL}s")
    for host in lab.hosts:
        host.add_container()
    witness = Witness(daemons)
    began = time.monotonic()
    with unbroken_mesh(lab.hosts):
        for victims in cycle((1, 2)):
            if time.monotonic() - began > seconds:
                break
            print(f"{time.monotonic() - began:6.1f} s  ", end="")
            _fail(lab.etcd_members, victims, rng, witness)
            witness.look_for(rng.uniform(*_CALM_SECONDS))
        wait_for(lambda: leased_again(lab), _LEASES_DEADLINE, "every host's lease in etcd", pause=_LOOKS_APART)
        witness.look()
    assert_in_order(daemons)


def _fail(members: Sequence[EtcdMember], count: int, rng: random.Random, witness: Witness) -> None:
    """One or two members fail and come back."""
    victims = _choose(members, count, rng)
    healthy = next(member for member in members if member not in victims)
    faults = FAULTS | (LOST if count == 1 else {})
    chosen = [(victim, rng.choice(list(faults))) for victim in victims]
    seconds = rng.uniform(*_SHORT_SECONDS) if count == 1 else LEASE_TTL + rng.uniform(*_OVER_TTL_SECONDS)
    print(", ".join(f"{victim.name} {name}" for victim, name in chosen), f"for {seconds:.1f} s", flush=True)
    for victim, name in chosen:
        faults[name].begin(victim)
    witness.look_for(seconds)
    for victim, name in chosen:
        faults[name].end(victim, healthy)
    wait_until_serving(members)


def _choose(members: Sequence[EtcdMember], count: int, rng: random.Random) -> list[EtcdMember]:
    """So many members, the leader among them more often than not."""
    victims = rng.sample(members, count)
    if rng.random() < 0.5:
        leader = _wait_for_leader(members)
        victims = [leader, *[victim for victim in victims if victim is not leader]][:count]
    return victims


def wait_until_serving(members: Sequence[EtcdMember]) -> None:
    """Return when one of these leads, and each takes a write."""
    # Checked first: without a leader, etcd rejects a write only after seconds.
    _wait_for_leader(members)
    for member in members:
        wait_for(partial(_takes_writes, member), _RECOVERY_DEADLINE, f"{member.name} to take writes", pause=0.05)


def _wait_for_leader(members: Sequence[EtcdMember]) -> EtcdMember:
    """The one that leads; there is none while it changes."""
    return wait_for(lambda: next(filter(_leads, members), None), _RECOVERY_DEADLINE, "a leader", pause=0.05)


def _leads(member: EtcdMember) -> bool:
    with suppress(OSError, RuntimeError):
        return member.is_leader()
    return False


def _takes_writes(member: EtcdMember) -> bool:
    with suppress(OSError, RuntimeError):
        member.put("/takes-writes", member.name)
        return True
    return False
