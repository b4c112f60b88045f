"""What etcd has, and which lines follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from flannelpy.check import judge_store
from flannelpy.check.lines import Level, Line
from flannelpy.check.observations import AlarmSeen, EndpointSeen, FileSeen, StoreSeen
from flannelpy.check.plan import Plan
from flannelpy.registry.base import PERMANENT, expires_in
from flannelpy.report import LeaseReport
from flannelpy.subnet import config
from flannelpy.subnet.lease import HostIdentity, Lease, LeaseAttrs
from flannelpy.subnet.lease_policy import Terms

US = HostIdentity(IPv4Address("172.17.8.101"), "host1")
NETWORK, OURS, THEIRS = map(IPv4Network, ("11.0.0.0/16", "11.0.1.0/24", "11.0.2.0/24"))
FILE = FileSeen("/run/flannel/subnet.env", NETWORK, OURS, 1472, is_running=True, backend="udp")
PLAN = Plan("udp", NETWORK, OURS, 1472, 8285)


def lease(subnet: IPv4Network, public_ip: str, host_id: str, *, expires: bool = True) -> Lease:
    attrs = LeaseAttrs(IPv4Address(public_ip), host_id=host_id)
    return Lease(subnet, attrs, expires_in(3600) if expires else PERMANENT, 1, 1)


OWN = lease(OURS, "172.17.8.101", "host1")
PEER = lease(THEIRS, "172.17.8.102", "host2")
STORE = StoreSeen("/coreos.com/network/config", config.parse('{"Network": "11.0.0.0/16"}'), leases=(OWN, PEER))


def codes(lines: Sequence[Line]) -> list[str]:
    return [line.code for line in lines if line.level is not Level.OK]


def of_store(seen: StoreSeen, file: FileSeen = FILE, plan: Plan | None = PLAN) -> list[str]:
    return codes(list(judge_store.store(seen, file, plan)))


def of_leases(*held: Lease, file: FileSeen = FILE, left: int | None = None, terms: Terms | None = None) -> list[str]:
    seen = replace(STORE, leases=held, seconds_left=left)
    return codes(list(judge_store.leases(seen, file, US, terms or Terms())))


def test_a_healthy_store_has_no_flaw() -> None:
    assert of_store(STORE) == []
    assert of_leases(OWN, PEER, left=80_000) == []


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (replace(STORE, config=None, failure="refused"), ["etcd_silent"]),
        (replace(STORE, config=None, flaw="Network is missing"), ["config_invalid"]),
        (replace(STORE, flaw="Network would capture packets"), ["config_invalid"]),
        (replace(STORE, config=None), ["config_missing"]),
        (replace(STORE, alarms=[AlarmSeen("1", "NOSPACE"), AlarmSeen("2", "NOSPACE")]), ["etcd_full"]),
        (replace(STORE, alarms=[AlarmSeen("1", "CORRUPT"), AlarmSeen("2", "NOSPACE")]), ["etcd_full", "etcd_corrupt"]),
        (replace(STORE, alarms=[AlarmSeen("1", "ANOTHER")]), []),
    ],
)
def test_what_is_wrong_with_a_store_is_named_once(seen: StoreSeen, expected: list[str]) -> None:
    assert of_store(seen) == expected


@pytest.mark.parametrize("changed", [{"mtu": 1450}, {"network": IPv4Network("12.0.0.0/16")}])
def test_a_subnet_file_of_another_config_is_a_warning(changed: dict[str, object]) -> None:
    assert of_store(STORE, replace(FILE, **changed)) == ["config_changed"]  # type: ignore[arg-type]
    assert of_store(STORE, FileSeen(FILE.path)) == []


@pytest.mark.parametrize(
    ("held", "file", "expected"),
    [
        ((PEER,), FILE, ["lease_missing"]),
        ((lease(OURS, "172.17.8.109", "host9"),), FILE, ["lease_taken"]),
        ((OWN,), FileSeen(FILE.path), ["subnet_file_missing"]),
        ((lease(IPv4Network("11.0.7.0/24"), "172.17.8.101", "host1"),), FILE, ["subnet_file_differs"]),
        ((OWN, lease(THEIRS, "172.17.8.101", "host9")), FILE, ["public_ip_twice"]),
        ((OWN, lease(THEIRS, "172.17.8.101", "")), FILE, ["public_ip_leftover"]),
        ((OWN, PEER, lease(IPv4Network("11.0.9.0/24"), "172.17.8.102", "host9")), FILE, ["public_ip_twice"]),
        ((lease(OURS, "172.17.8.101", "", expires=False),), FILE, []),
    ],
)
def test_each_flaw_of_the_leases_is_named(held: tuple[Lease, ...], file: FileSeen, expected: list[str]) -> None:
    assert of_leases(*held, file=file) == expected


@pytest.mark.parametrize(
    ("left", "terms", "expected"),
    [
        (3601, Terms(), []),
        (1801, Terms(), []),
        (1799, Terms(), ["lease_overdue"]),
        (26, Terms(100, 3600), []),
        (24, Terms(100, 3600), ["lease_overdue"]),
        (None, Terms(), []),
    ],
)
def test_a_lease_is_overdue_in_the_second_half_of_its_margin(
    left: int | None, terms: Terms, expected: list[str]
) -> None:
    assert of_leases(OWN, left=left, terms=terms) == expected


@pytest.mark.parametrize("problem", ["", "compare failed"])
def test_the_daemon_tells_whether_it_renews_its_lease_by_other_flags(problem: str) -> None:
    seen = replace(STORE, seconds_left=24)
    reported = LeaseReport(OURS, 24.0, problem=problem)
    found = list(judge_store.leases(seen, FILE, US, Terms(100, 3600), reported))
    assert codes(found) == (["lease_overdue"] if problem else [])


def test_the_lease_of_the_daemon_tells_the_host_id() -> None:
    flags = HostIdentity(US.public_ip, "another")
    assert judge_store.identity([PEER, OWN], flags, OURS) == US
    assert judge_store.identity([PEER, OWN], flags, None) == flags
    assert judge_store.identity([PEER, OWN], flags, THEIRS) == flags  # of another public IP: taken
    assert judge_store.identity([lease(OURS, "172.17.8.101", "")], flags, OURS) == flags


def test_the_own_lease_is_that_of_the_subnet_file() -> None:
    other = lease(THEIRS, "172.17.8.101", "host1")
    assert judge_store.own_lease([other, OWN], US, FILE) == OWN
    assert judge_store.own_lease([other], US, FILE) == other
    assert judge_store.own_lease([PEER], US, FILE) is None


def endpoint(failure: str = "", ahead: float | None = 0.2, *, local: bool = False) -> EndpointSeen:
    return EndpointSeen("http://a:2379", failure, ahead, local)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ([endpoint()], []),
        ([endpoint(), endpoint("refused", None)], ["endpoint_silent"]),
        ([endpoint(), endpoint("refused", None, local=True)], []),  # the default names two ports of this host
        ([endpoint("refused", None)], []),  # the store's own line has the cause
        ([endpoint(ahead=11)], ["clock_differs"]),
        ([endpoint(ahead=-11)], ["clock_differs"]),
        ([endpoint(ahead=9.9)], []),
        ([endpoint(ahead=None)], []),
    ],
)
def test_silent_endpoints_and_wrong_clocks_are_warnings(seen: list[EndpointSeen], expected: list[str]) -> None:
    assert codes(list(judge_store.endpoints(seen))) == expected
