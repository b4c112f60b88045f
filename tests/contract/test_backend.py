"""What every Backend promises, sentence by sentence of flannelpy/backend/base.py, on devices of a real kernel."""

from __future__ import annotations

import json
from functools import partial
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

import pytest
from contract.backend_host import DEADLINE, MTU, OTHER_NETWORK, BackendHost, peer, until
from faults.backends import ALLOC, HOST_GW, NETWORK, UDP, VXLAN
from faults.backends import Backend as Kind

from flannelpy.backend.underlay import Routed
from flannelpy.errors import HostError
from flannelpy.linux.netlink.client import Netlink
from flannelpy.marks import is_device_alias
from flannelpy.subnet.lease import HostIdentity, Lease
from flannelpy.subnet.lease_table import LeaseAdded, LeaseRemoved

if TYPE_CHECKING:
    from faults.backends import Lease as Peer

    from flannelpy.backend.base import Backend
    from flannelpy.subnet.lease_table import LeaseEvent

pytestmark = pytest.mark.timeout(3 * DEADLINE)

KINDS = (ALLOC, UDP, VXLAN, HOST_GW)
A, B, C = peer(11), peer(12), peer(13)
#: The first peer on another host.
MOVED = peer(14)._replace(subnet=A.subnet)
GONE = LeaseRemoved(IPv4Network("11.0.99.0/24"))
#: What makes a second backend share nothing with the first.
OTHER_OPTIONS = {"udp": {"Port": 8286}, "vxlan": {"VNI": 2}}
#: What another program may do to the state of each backend.
DAMAGE = {
    "udp": [
        "link delete flannel0",
        "link set flannel0 down",
        "link set flannel0 mtu 1300",
        "address delete 11.0.0.0/16 dev flannel0",
        "address add 11.0.77.1/24 dev flannel0",
        "route delete 11.0.0.0/16 dev flannel0",
    ],
    "vxlan": [
        "link delete flannel.1",
        "link set flannel.1 down",
        "link set flannel.1 address 02:00:00:00:00:99",
        "address add 11.0.77.1/24 dev flannel.1",
        f"route delete {A.subnet}",
        f"neighbour delete {A.subnet.network_address} dev flannel.1",
        f"route add 11.0.98.0/24 via {A.subnet.network_address} dev flannel.1 onlink",
    ],
    "host-gw": [f"route delete {A.subnet}", f"route add 11.0.98.0/24 via {A.public_ip} dev eth1 proto 85"],
}

every_backend = pytest.mark.parametrize("backend_host", KINDS, ids=str, indirect=True)


def over(*kinds: Kind) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("backend_host", kinds, ids=str, indirect=True)


def listed_devices(host: BackendHost) -> dict[str, dict[str, object]]:
    return {link["ifname"]: link for link in json.loads(host.host.run("ip", "-j", "link").stdout)}


def udp_ports(host: BackendHost) -> set[int]:
    lines = host.host.run("ss", "-Hlun").stdout.splitlines()
    return {int(line.split()[3].rpartition(":")[2]) for line in lines}


def counts(backend: Backend) -> int | None:
    """Return how many peers the report counts; None without numbers."""
    report = backend.report()
    if report.next_hops is None or report.unreachable is None:
        assert report.next_hops is report.unreachable
        return None
    return report.next_hops + report.unreachable


def number_of(host: BackendHost, peers: int) -> int | None:
    return None if host.kind is ALLOC else peers


@every_backend
def test_before_the_start_nothing_changes(backend_host: BackendHost) -> None:
    async def test() -> None:
        before = backend_host.state()
        backend = backend_host.create()
        resources = list(backend.exclusive_resources)
        backend_host.own_lease(backend)
        await backend.close()
        assert backend_host.state() == before
        async with backend_host.running() as started:
            assert list(started.exclusive_resources) == resources

    backend_host.run(test)


@every_backend
def test_attributes_stay_and_a_backend_of_the_same_type_can_use_them(backend_host: BackendHost) -> None:
    lifetime = backend_host.lease(A).lifetime

    async def test() -> None:
        backend = backend_host.create()
        ours = backend.lease_attrs(backend_host.identity, None)
        assert ours.public_ip == backend_host.host.public_ip
        assert backend.lease_attrs(backend_host.identity, ours) == ours
        another = HostIdentity(backend_host.lease(A).attrs.public_ip, "host2")
        theirs = Lease(A.subnet, backend.lease_attrs(another, None), lifetime, 2, 2)
        async with backend_host.running([LeaseAdded(theirs)]) as started:
            assert started.report().next_hops == number_of(backend_host, 1)
            assert not started.report().unreachable

    backend_host.run(test)


@every_backend
def test_start_opens_what_it_reports(backend_host: BackendHost) -> None:
    async def test() -> None:
        backend = backend_host.create()
        before, ports = backend_host.state(), udp_ports(backend_host)
        mtu = await backend.start(backend_host.own_lease(backend))
        devices = listed_devices(backend_host)
        if backend.device:
            assert devices[backend.device]["mtu"] == mtu < MTU
            assert is_device_alias(str(devices[backend.device]["ifalias"]))
        else:
            assert mtu == MTU
            assert backend_host.state() == before
        opened = udp_ports(backend_host) - ports
        if backend.datagrams:
            assert (backend.datagrams.device, {backend.datagrams.port}) == (backend.device, opened)
        else:
            assert not opened
        if backend.forwarding:
            assert {*backend.forwarding.devices, backend.forwarding.external} <= devices.keys()
            assert not backend.device or backend.device in backend.forwarding.devices
        assert (backend.forwarding is None) == (backend.routed is Routed.NOTHING)
        network_route = any(way.startswith(f"{NETWORK} ") for way in backend_host.ways())
        assert network_route == (backend.routed is Routed.NETWORK)
        await backend.close()

    backend_host.run(test)


@every_backend
def test_once_settled_the_first_leases_are_in_the_kernel(backend_host: BackendHost) -> None:
    async def test() -> None:
        for peers in ([], [A, B, C]):
            async with backend_host.running(backend_host.added(*peers)) as backend:
                assert backend_host.ways() == backend_host.wanted(peers)
                assert backend.report().type == backend_host.kind.name
                assert backend.report().next_hops == number_of(backend_host, len(peers))
                assert counts(backend) == number_of(backend_host, len(peers))

    backend_host.run(test)


def has_ways_to(host: BackendHost, peers: list[Peer]) -> bool:
    return host.ways() == host.wanted(peers)


def histories(host: BackendHost) -> list[tuple[list[list[LeaseEvent]], list[Peer]]]:
    """Return calls of ``apply``, and the peers that are left."""
    a, b, c, moved = (host.added(one)[0] for one in (A, B, C, MOVED))
    removed = LeaseRemoved(B.subnet)
    return [
        ([[c, b, a]], [A, B, C]),
        ([[a, b], [a, b], [b, c]], [A, B, C]),
        ([[a, b, c], [removed], [removed, GONE]], [A, C]),
        ([[GONE], [b, a, removed, c]], [A, C]),
        ([[a], [moved, b, moved]], [MOVED, B]),
        ([[moved], [a], [moved, b]], [MOVED, B]),
    ]


@every_backend
def test_the_result_depends_on_the_present_leases_alone(backend_host: BackendHost) -> None:
    async def test() -> None:
        for calls, peers in histories(backend_host):
            async with backend_host.running(calls[0]) as backend:
                for events in calls[1:]:
                    backend.apply(events)
                await until(partial(has_ways_to, backend_host, peers))
                assert counts(backend) == backend.report().next_hops == number_of(backend_host, len(peers))

    backend_host.run(test)


@over(VXLAN, HOST_GW)
def test_a_lease_that_it_cannot_use_is_unreachable_and_stops_no_other(backend_host: BackendHost) -> None:
    bad = peer(15, public_ip="10.99.0.1" if backend_host.kind is HOST_GW else "")
    if backend_host.kind is VXLAN:
        bad = bad._replace(mac="no MAC")

    async def test() -> None:
        async with backend_host.running(backend_host.added(bad, A)) as backend:
            assert backend_host.ways() == backend_host.wanted([A])
            report = backend.report()
            assert (report.next_hops, report.unreachable) == (1, 1)
            backend.apply([LeaseRemoved(bad.subnet)])
            await until(lambda: counts(backend) == 1)

    backend_host.run(test)


@pytest.mark.parametrize(
    ("backend_host", "command"),
    [(kind, command) for kind in KINDS for command in DAMAGE.get(kind.name, ())],
    ids=str,
    indirect=["backend_host"],
)
def test_what_another_program_changes_is_restored_and_reported_once(backend_host: BackendHost, command: str) -> None:
    async def test() -> None:
        async with backend_host.running(backend_host.added(A, B)) as backend, Netlink() as netlink:
            backend_host.host.configure(command)
            lines: list[str] = []
            while not lines:
                lines = await backend.repair(netlink)
            assert len(set(lines)) == len(lines)
            assert all(line.endswith(("; restored", "; removed")) for line in lines), lines
            assert backend_host.ways() == backend_host.wanted([A, B])
            assert await backend.repair(netlink) == []
            assert backend.report().next_hops == 2

    backend_host.run(test)


@every_backend
def test_without_a_change_there_is_no_repair(backend_host: BackendHost) -> None:
    async def test() -> None:
        async with backend_host.running(backend_host.added(A)) as backend, Netlink() as netlink:
            before = backend_host.state()
            for _ in range(2):
                assert await backend.repair(netlink) == []
            assert backend_host.state() == before

    backend_host.run(test)


@every_backend
def test_close_keeps_what_the_next_start_adopts_and_leaves_nothing_else(backend_host: BackendHost) -> None:
    async def test() -> None:
        before = backend_host.state()
        async with backend_host.running(backend_host.added(A, B)) as backend:
            during = backend_host.state()
        left = backend_host.state()
        assert left == (during if backend.adopts_routes else before)
        await backend.close()
        assert backend_host.state() == left

    backend_host.run(test)


@every_backend
def test_another_one_can_start_after_it_and_adopts_what_is_left(backend_host: BackendHost) -> None:
    async def test() -> None:
        async with backend_host.running(backend_host.added(A, B)):
            during = backend_host.state()
        async with backend_host.running(backend_host.added(A, B)) as backend:
            if backend.adopts_routes:
                assert backend_host.state() == during
            assert backend_host.ways() == backend_host.wanted([A, B])
        async with backend_host.running(backend_host.added(B, C)):
            assert backend_host.ways() == backend_host.wanted([B, C])

    backend_host.run(test)


@every_backend
def test_two_without_a_common_resource_run_beside_each_other(backend_host: BackendHost) -> None:
    async def test() -> None:
        async with backend_host.running(backend_host.added(A)) as first:
            ways = backend_host.ways()
            second = backend_host.create(OTHER_NETWORK, **OTHER_OPTIONS.get(backend_host.kind.name, {}))
            assert not {*first.exclusive_resources} & {*second.exclusive_resources}
            await second.start(backend_host.own_lease(second, OTHER_NETWORK))
            assert not first.device or first.device != second.device
            await second.close()
            assert ways <= backend_host.ways()

    backend_host.run(test)


@over(UDP, VXLAN)
def test_a_start_that_fails_for_a_taken_resource_leaves_nothing(backend_host: BackendHost) -> None:
    async def test() -> None:
        async with backend_host.running(backend_host.added(A)) as first:
            before = backend_host.state()
            second = backend_host.create(OTHER_NETWORK)
            assert {*first.exclusive_resources} & {*second.exclusive_resources}
            with pytest.raises(HostError):
                await second.start(backend_host.own_lease(second, OTHER_NETWORK))
            await second.close()
            assert backend_host.state() == before

    backend_host.run(test)
