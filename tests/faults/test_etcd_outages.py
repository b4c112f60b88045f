"""Hosts whose etcd goes away for longer than their leases last, and comes back in every state it can be in."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address

import pytest
from chaos import MEMBERS, Witness, wait_until_serving
from etcd_server import EtcdServer
from hosts import assert_in_order, leased_again, next_hops
from lab import ETCD_PREFIX, Daemon, Lab, wait_for
from mesh import unbroken_mesh
from overlay import unbroken_stream

#: Room for many foreign hosts: 11.1.0.0 and up are beyond the subnets that our own pick from.
CONFIG = '{"Network":"11.0.0.0/8"}'
LEASE_TTL = 5
BYTES_PER_SECOND = 2_000_000
BURST = 2000
#: Within which everything must be as before; a hanging connection is noticed this late.
DEADLINE = 60


def put_config(lab: Lab) -> None:
    lab.put_config(CONFIG)


def foreign_lease(number: int) -> tuple[str, str]:
    """Key and value of a lease whose host does not exist."""
    subnet = IPv4Address("11.1.0.0") + (number << 8)
    return f"{ETCD_PREFIX}/subnets/{subnet}-24", f'{{"PublicIP":"{IPv4Address("10.0.0.0") + number}"}}'


def wait_until_known(daemons: Sequence[Daemon], etcd: EtcdServer, number: int, deadline: float = DEADLINE) -> float:
    """Put a foreign lease, and return when every daemon has its route: how long that took."""
    key, value = foreign_lease(number)
    etcd.put(key, value)
    began = time.monotonic()
    added = f"Subnet added: {re.escape(key.rpartition('/')[2].replace('-', '/'))}$"
    for daemon in daemons:
        daemon.wait_for_log(added, deadline)
    return time.monotonic() - began


@contextmanager
def undisturbed(lab: Lab, lease_ttl: int = LEASE_TTL) -> Iterator[tuple[list[Daemon], Witness]]:
    """Daemons on all hosts and traffic between them, none of which may change or suffer; in the end all is leased."""
    put_config(lab)
    daemons = lab.start_daemons("-iface=eth1", f"-subnet-lease-ttl={lease_ttl}s")
    witness = Witness(daemons)
    with ExitStack() as traffic:
        traffic.enter_context(unbroken_mesh(lab.hosts))
        source, sink = (host.add_container() for host in lab.hosts[:2])
        stream = traffic.enter_context(unbroken_stream(source, sink, BYTES_PER_SECOND))
        yield daemons, witness
        wait_for(lambda: leased_again(lab), DEADLINE, "every host's lease in etcd", pause=0.1)
        stream.wait_for_more()
        witness.look()
    assert_in_order(daemons)


@pytest.mark.parametrize("state", ["with its data", "empty"])
def test_an_etcd_that_was_away_for_longer_than_the_leases_last(make_lab: Callable[..., Lab], state: str) -> None:
    lab = make_lab(hosts=3)
    with undisturbed(lab) as (daemons, witness):
        lab.etcd.kill()
        witness.look_for(LEASE_TTL + 1)
        if state == "empty":
            lab.etcd.wipe()
        lab.etcd.start()
        if state == "empty":
            put_config(lab)
        wait_for(lambda: leased_again(lab), DEADLINE, "every host's lease in etcd", pause=0.1)
        print(f"later leases known after {wait_until_known(daemons, lab.etcd, 1):.1f} s")


def test_an_etcd_restored_from_an_older_copy(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=3, etcd_members=1)
    [member] = lab.etcd_members
    with undisturbed(lab) as (daemons, _):
        copy = member.log.with_name("copy")
        member.stop()
        member.save(copy)
        member.start()
        member.put_all({f"/elsewhere/{number}": "" for number in range(100)}, ttl=DEADLINE)
        wait_until_known(daemons, member, 1)
        # As in a power cut nobody sees it go; and what is watched for is in the future of the one that comes back.
        for flag in ("FIN", "RST"):
            say_nothing = ("-p", "tcp", "--tcp-flags", flag, flag, "-j", "DROP")
            member.machine.run("iptables", "-A", "OUTPUT", *say_nothing)
        member.cut()
        member.kill()
        member.restore(copy)
        member.start()
        member.mend()
        print(f"later leases known after {wait_until_known(daemons, member, 2):.1f} s")
        # What the copy does not know is gone, and everybody has put it away.
        known = len(lab.hosts) - 1 + 1
        wait_for(lambda: {next_hops(daemon) for daemon in daemons} == {known}, DEADLINE, f"{known} next hops")


def test_a_half_open_link_to_etcd(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=3, etcd_members=1)
    [member] = lab.etcd_members
    with undisturbed(lab) as (daemons, witness):
        member.cut()
        witness.look_for(LEASE_TTL + 1)
        # Only its own machine reaches it.
        member.put(*foreign_lease(1))
        member.mend()
        print(f"later leases known after {wait_until_known(daemons, member, 2):.1f} s")
        for daemon in daemons:
            daemon.wait_for_log(r"Subnet added: 11\.1\.1\.0/24$", DEADLINE)


def test_a_frozen_member(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=3, etcd_members=MEMBERS)
    with undisturbed(lab, lease_ttl=DEADLINE) as (daemons, _):
        # All daemons watch the first member, having had an answer there.
        frozen, *others = lab.etcd_members
        wait_until_known(daemons, frozen, 1)
        frozen.pause()
        wait_until_serving(others)
        print(f"later leases known after {wait_until_known(daemons, others[0], 2):.1f} s")
        frozen.resume()
        wait_until_serving(lab.etcd_members)


def test_members_that_die_one_after_the_other(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=3, etcd_members=MEMBERS)
    with undisturbed(lab, lease_ttl=DEADLINE) as (daemons, witness):
        leaders: set[str] = set()
        for number, member in enumerate(lab.etcd_members):
            others = [other for other in lab.etcd_members if other is not member]
            leaders.update(each.name for each in lab.etcd_members if each.is_leader())
            member.kill()
            wait_until_serving(others)
            leaders.update(each.name for each in others if each.is_leader())
            print(f"later leases known after {wait_until_known(daemons, others[0], number):.1f} s")
            witness.look()
            member.start()
            wait_until_serving(lab.etcd_members)
        assert len(leaders) > 1


def test_thousands_of_changes_at_once(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=3)
    known = BURST + len(lab.hosts) - 1
    with undisturbed(lab, lease_ttl=DEADLINE) as (daemons, _):
        lab.etcd.put_all(dict(map(foreign_lease, range(BURST))), ttl=600)
        wait_for(lambda: all(next_hops(daemon) == known for daemon in daemons), DEADLINE, f"{known} next hops")
