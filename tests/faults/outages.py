"""Outages of etcd that hosts must not notice, with any backend."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv4Network

from faults.backends import Backend
from lab import Daemon, EtcdMember, Host, Lab, wait_connected, wait_for
from lab.etcd_server import EtcdServer
from support.chaos import MEMBERS, Witness, wait_until_serving
from support.hosts import assert_in_order, leased_again, next_hops
from support.mesh import unbroken_mesh
from support.overlay import unbroken_stream

#: Space for many foreign hosts: 11.1.0.0 and up are beyond the subnets from which the hosts choose.
NETWORK = IPv4Network("11.0.0.0/8")
LEASE_TTL = 5
BYTES_PER_SECOND = 2_000_000
BURST = 2000
#: The seconds within which the state must be restored; a hanging connection is detected this late.
DEADLINE = 60


Scenario = Callable[[Callable[..., Lab], Backend], None]


def foreign_subnet(number: int) -> IPv4Network:
    return IPv4Network((IPv4Address("11.1.0.0") + (number << 8), 24))


def wait_until_added(daemons: Sequence[Daemon], number: int) -> None:
    """Return when every daemon has the route to a foreign subnet."""
    for daemon in daemons:
        daemon.wait_for_log(rf"Subnet added: {re.escape(str(foreign_subnet(number)))}( via \S+)?$", DEADLINE)


def wait_until_removed(daemons: Sequence[Daemon], number: int) -> None:
    """Return when every daemon has removed the route to a foreign subnet."""
    for daemon in daemons:
        daemon.wait_for_log(rf"Subnet removed: {re.escape(str(foreign_subnet(number)))}$", DEADLINE)


def lose_power(member: EtcdMember) -> None:
    """End a member that is cut off, as a power cut would: its kernel forgets the connections.

    Once the member is no longer cut off, the kernel answers the next packet of each connection by a reset.
    """
    member.kill()
    member.machine.run("ss", "--kill", "--tcp", "--all")


def wait_until_known(daemons: Sequence[Daemon], etcd: EtcdServer, backend: Backend, number: int) -> None:
    """Write a foreign lease, wait until every daemon has its route, and return the seconds that it took."""
    etcd.put(*backend.foreign_lease(foreign_subnet(number), number))
    began = time.monotonic()
    wait_until_added(daemons, number)
    print(f"later leases known after {time.monotonic() - began:.1f} s")


@contextmanager
def undisturbed(
    lab: Lab, backend: Backend, lease_ttl: int = LEASE_TTL, flags_of: Callable[[Host], Sequence[str]] = lambda _: ()
) -> Iterator[tuple[list[Daemon], Witness]]:
    """Run daemons with traffic; assert that nothing changes, no packet is lost, and all leases exist in the end."""
    lab.put_config(backend.config(NETWORK))
    flags = "-iface=eth1", f"-subnet-lease-ttl={lease_ttl}s"
    daemons = [host.start_daemon(*flags, *flags_of(host)) for host in lab.hosts]
    wait_connected(daemons)
    source, sink, *_ = [host.add_container() for host in lab.hosts]
    witness = Witness(daemons)
    with ExitStack() as traffic:
        traffic.enter_context(unbroken_mesh(lab.hosts))
        stream = traffic.enter_context(unbroken_stream(source, sink, BYTES_PER_SECOND))
        yield daemons, witness
        wait_for(lambda: leased_again(lab), DEADLINE, "every host's lease in etcd", pause=0.1)
        stream.wait_for_more()
        witness.look()
    assert_in_order(daemons)


def away_for_longer_than_the_leases_last(make_lab: Callable[..., Lab], backend: Backend) -> None:
    """Stop etcd for longer than the leases last, twice: it returns with its data, then empty."""
    lab = make_lab(hosts=3)
    with undisturbed(lab, backend) as (daemons, witness):
        for number, wiped in enumerate((False, True)):
            lab.etcd.kill()
            witness.look_for(LEASE_TTL + 1)
            if wiped:
                lab.etcd.wipe()
            lab.etcd.start()
            if wiped:
                lab.put_config(backend.config(NETWORK))
            wait_for(lambda: leased_again(lab), DEADLINE, "every host's lease in etcd", pause=0.1)
            wait_until_known(daemons, lab.etcd, backend, number)


def restored_from_an_older_copy(make_lab: Callable[..., Lab], backend: Backend) -> None:
    lab = make_lab(hosts=3, etcd_members=1)
    [member] = lab.etcd_members
    with undisturbed(lab, backend) as (daemons, _):
        copy = member.log.with_name("copy")
        member.stop()
        member.save(copy)
        member.start()
        member.put_all({f"/elsewhere/{number}": "" for number in range(100)}, ttl=DEADLINE)
        wait_until_known(daemons, member, backend, 1)
        # No client notices the end; and the cursor is beyond the index of the etcd that returns.
        member.cut()
        lose_power(member)
        member.restore(copy)
        member.start()
        member.mend()
        wait_until_known(daemons, member, backend, 2)
        # Leases that the copy lacks are gone, and every daemon has removed their routes.
        wait_until_removed(daemons, 1)


def half_open_link(make_lab: Callable[..., Lab], backend: Backend) -> None:
    lab = make_lab(hosts=3, etcd_members=1)
    [member] = lab.etcd_members
    with undisturbed(lab, backend) as (daemons, witness):
        member.cut()
        witness.look_for(LEASE_TTL + 1)
        # Only etcd's own machine reaches it.
        member.put(*backend.foreign_lease(foreign_subnet(1), 1))
        member.mend()
        wait_until_known(daemons, member, backend, 2)
        wait_until_added(daemons, 1)


def frozen_member(make_lab: Callable[..., Lab], backend: Backend) -> None:
    lab = make_lab(hosts=3, etcd_members=MEMBERS)
    with undisturbed(lab, backend, DEADLINE) as (daemons, _):
        # All daemons watch the first member, because it has answered.
        frozen, *others = lab.etcd_members
        wait_until_known(daemons, frozen, backend, 1)
        frozen.pause()
        wait_until_serving(others)
        wait_until_known(daemons, others[0], backend, 2)
        frozen.resume()
        wait_until_serving(lab.etcd_members)


def members_die_one_after_the_other(make_lab: Callable[..., Lab], backend: Backend) -> None:
    lab = make_lab(hosts=3, etcd_members=MEMBERS)
    with undisturbed(lab, backend, DEADLINE) as (daemons, witness):
        leaders: set[str] = set()
        for number, member in enumerate(lab.etcd_members):
            others = [other for other in lab.etcd_members if other is not member]
            leaders.update(each.name for each in lab.etcd_members if each.is_leader())
            member.kill()
            wait_until_serving(others)
            leaders.update(each.name for each in others if each.is_leader())
            wait_until_known(daemons, others[0], backend, number)
            witness.look()
            member.start()
            wait_until_serving(lab.etcd_members)
        assert len(leaders) > 1


def thousands_of_changes_at_once(make_lab: Callable[..., Lab], backend: Backend) -> None:
    lab = make_lab(hosts=3)
    known = BURST + len(lab.hosts) - 1
    with undisturbed(lab, backend, DEADLINE) as (daemons, _):
        leases = [backend.foreign_lease(foreign_subnet(number), number) for number in range(BURST)]
        lab.etcd.put_all(dict(leases), ttl=600)
        wait_for(lambda: all(next_hops(daemon) == known for daemon in daemons), DEADLINE, f"{known} next hops")


SCENARIOS: dict[str, Scenario] = {
    "restored from an older copy": restored_from_an_older_copy,
    "a half-open link": half_open_link,
    "a frozen member": frozen_member,
    "members die one after the other": members_die_one_after_the_other,
    "thousands of changes at once": thousands_of_changes_at_once,
}


def compacted_meanwhile(make_lab: Callable[..., Lab], backend: Backend) -> None:
    """The events of an outage are compacted before the daemons can ask for them."""
    lab = make_lab(hosts=3, etcd_members=1)
    [member] = lab.etcd_members
    with undisturbed(lab, backend, 4 * LEASE_TTL) as (daemons, witness):
        wait_until_known(daemons, member, backend, 1)
        member.cut()
        member.put(*backend.foreign_lease(foreign_subnet(2), 2))
        member.delete(backend.foreign_lease(foreign_subnet(1))[0])
        member.v3.compact()
        lose_power(member)
        witness.look_for(LEASE_TTL)
        member.start()
        member.mend()
        wait_until_added(daemons, 2)
        wait_until_removed(daemons, 1)


def password_demanded_meanwhile(make_lab: Callable[..., Lab], backend: Backend) -> None:
    """Users are introduced under running hosts, of which one has no password."""
    lab = make_lab(hosts=3)

    def flags_of(host: Host) -> Sequence[str]:
        return () if host is lab.hosts[0] else ("-etcd-username=root", "-etcd-password=root")

    with undisturbed(lab, backend, DEADLINE, flags_of) as (daemons, witness):
        lab.etcd.v3.enable_auth()
        lab.etcd.put(*backend.foreign_lease(foreign_subnet(1), 1))
        wait_until_added(daemons[1:], 1)
        witness.look_for(LEASE_TTL)
        lab.etcd.v3.disable_auth()
        wait_until_known(daemons, lab.etcd, backend, 2)


V3_SCENARIOS: dict[str, Scenario] = {
    "a compaction meanwhile": compacted_meanwhile,
    "a password demanded meanwhile": password_demanded_meanwhile,
}
