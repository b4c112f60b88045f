"""Random lives of leases, addresses and kernel answers: the filter against an oracle that looks at everything."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from hypothesis import given, settings
from hypothesis import strategies as st

from flannelpy.addressing.surroundings import Surroundings, surroundings
from flannelpy.registry.base import PERMANENT
from flannelpy.subnet.lease import Lease, LeaseAttrs
from flannelpy.subnet.lease_filter import LeaseFilter
from flannelpy.subnet.lease_table import LeaseAdded, LeaseRemoved

NETWORK, OWN, OUR_IP = IPv4Network("10.0.0.0/8"), IPv4Network("10.7.1.0/24"), IPv4Address("10.1.0.11")
# Few enough that subnets and addresses meet.
ADDRESSES = st.sampled_from(
    [
        *("10.1.0.11", "10.1.0.12", "10.1.0.255", "10.7.1.4", "10.20.0.4", "10.20.1.4", "10.30.0.4", "10.30.0.5"),
        *("172.17.8.102", "172.17.8.255", "127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "169.254.0.1"),
    ]
).map(IPv4Address)
SUBNETS = st.builds(
    lambda address, length: IPv4Network((int(address), length), strict=False),
    ADDRESSES,
    st.sampled_from([0, 7, 8, 9, 12, 15, 16, 23, 24, 24, 24, 25, 30, 31, 32]),
)
LEASES = st.builds(
    lambda subnet, address, backend_type: Lease(subnet, LeaseAttrs(address, backend_type), PERMANENT, 1, 1),
    SUBNETS,
    ADDRESSES,
    st.sampled_from(["", "", "udp", "vxlan"]),
)
AROUND = st.builds(
    lambda prefix_len, others, endpoints: surroundings(
        [IPv4Interface((OUR_IP, prefix_len))], [IPv4Interface((address, 24)) for address in others], OUR_IP, endpoints
    ),
    st.sampled_from([24, 25, 32]),
    st.lists(ADDRESSES, max_size=2),
    st.lists(ADDRESSES, max_size=1),
)
STEPS = st.lists(
    st.tuples(st.just("put"), LEASES)
    | st.tuples(st.just("remove"), SUBNETS)
    | st.tuples(st.just("observe"), AROUND)
    | st.tuples(st.just("route"), st.tuples(ADDRESSES, st.booleans()))
    | st.tuples(st.just("decide"), st.integers(1, 5)),
    max_size=40,
)


def is_usable(lease: Lease, others: list[Lease], around: Surroundings, captured: set[IPv4Address]) -> bool:
    """The rules of the issue, one by one, with all that the standard library offers."""
    subnet, address = lease.subnet, lease.attrs.public_ip
    return not (
        lease.attrs.backend_type not in ("", "udp")
        or subnet == NETWORK
        or not subnet.subnet_of(NETWORK)
        or subnet.overlaps(OWN)
        or not is_host(address)
        or address in around.addresses
        or any(network.prefixlen < 31 and address in (network[0], network[-1]) for network in around.connected)
        or address in subnet
        or address in OWN
        or address in captured
        or any(ours in subnet for ours in (*around.underlay, *around.endpoints))
        or any(subnet.subnet_of(link) for link in around.links)
        or any(
            other.attrs.public_ip in subnet
            for other in others
            if is_host(other.attrs.public_ip)
            and other.attrs.public_ip not in other.subnet
            and other.attrs.public_ip not in OWN
        )
    )


def is_host(address: IPv4Address) -> bool:
    return not (address.is_multicast or address.is_loopback or address.is_reserved or int(address) < 1 << 24)


class World:
    """What is stored, what the kernel would answer, and what backends were given."""

    def __init__(self, around: Surroundings) -> None:
        self.leases = LeaseFilter(NETWORK, Lease(OWN, LeaseAttrs(OUR_IP), PERMANENT, 1, 1), around)
        self.around = around
        self.stored: dict[IPv4Network, Lease] = {}
        self.captured: set[IPv4Address] = set()
        self.given: dict[IPv4Network, LeaseAttrs] = {}

    def put(self, lease: Lease) -> None:
        self.stored[lease.subnet] = lease
        self.leases.update([LeaseAdded(lease)])

    def remove(self, subnet: IPv4Network) -> None:
        self.stored.pop(subnet, None)
        self.leases.update([LeaseRemoved(subnet)])

    def observe(self, around: Surroundings) -> None:
        self.around = around
        self.leases.observe(around)

    def route(self, change: tuple[IPv4Address, bool]) -> None:
        address, is_captured = change
        (self.captured.add if is_captured else self.captured.discard)(address)
        self.leases.answer({address: "flannel.1" * is_captured})

    def decide(self, count: int) -> None:
        """Each event has to change something."""
        for event in self.leases.decide(count).events:
            if isinstance(event, LeaseAdded):
                assert self.given.get(event.lease.subnet) != event.lease.attrs
                self.given[event.lease.subnet] = event.lease.attrs
            else:
                del self.given[event.subnet]
        self.leases.answer({one: "flannel.1" * (one in self.captured) for one in self.leases.unasked(count)})


@settings(max_examples=400)
@given(AROUND, STEPS)
def test_usable_is_what_a_look_at_everything_finds(around: Surroundings, steps: list[tuple[str, object]]) -> None:
    world = World(around)
    for step, what in steps:
        getattr(world, step)(what)
    while world.leases.has_work or world.leases.unasked(1):
        world.decide(3)
    everything = list(world.stored.values())
    assert world.given == {
        lease.subnet: lease.attrs for lease in everything if is_usable(lease, everything, world.around, world.captured)
    }
