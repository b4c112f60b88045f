"""The backends, for tests that run over several: config, leases and expected kernel state of each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Any, NamedTuple

import pytest
from lab import ETCD_PREFIX, Host
from lab.etcd_stores import Api
from support.hosts import belongings, subnet_in_file, ways

from flannelpy.marks import ROUTE_PROTOCOL

NETWORK = IPv4Network("11.0.0.0/16")


class Lease(NamedTuple):
    """The lease of one host; ``mac`` is empty if the backend has none."""

    subnet: IPv4Network
    public_ip: str
    mac: str


class Backend:
    """What the backends have in common, which is all of alloc.  ``device`` is empty if there is none."""

    name = "alloc"
    device = ""
    mtu = 1500

    def __str__(self) -> str:
        return self.name

    def config(self, network: IPv4Network = NETWORK) -> str:
        """Return the network config with this backend."""
        return json.dumps({"Network": str(network), "Backend": {"Type": self.name}})

    def attrs(self, mac: str) -> dict[str, Any]:
        """Return the attributes of a lease beside public IP and host ID."""
        return {}

    def lease(self, public_ip: str, mac: str = "02:00:00:00:00:01") -> str:
        """Return the value of a lease without host ID."""
        return json.dumps({"PublicIP": public_ip, **self.attrs(mac)})

    def foreign_lease(self, subnet: IPv4Network, number: int = 0) -> tuple[str, str]:
        """Return key and value of the lease of a host that does not exist."""
        mac = f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"
        return lease_key(subnet), self.lease(str(self._foreign_public_ip(number)), mac)

    def _foreign_public_ip(self, number: int) -> IPv4Address:
        return IPv4Address("10.0.0.0") + number

    def is_as_it_should_be(self, host: Host) -> bool:
        """Return whether the host has exactly the kernel state that leads packets to its peers."""
        # The kernel adds the device's own route first, and flannelpy after a removal.
        return {way.replace("proto 85 scope link", "proto kernel scope link") for way in ways(host)} == self.wanted(
            host
        )

    def wanted(self, host: Host) -> set[str]:
        """Return what hosts.ways must show for all present leases."""
        leases = _leases(host)
        own = leases.pop(subnet_in_file(host) or NETWORK)
        return self.ways(host, own, leases.values())

    def ways(self, host: Host, own: Lease, peers: Iterable[Lease]) -> set[str]:
        """Return what hosts.ways must show on a host that holds ``own`` and knows ``peers``."""
        return {*self._by_device(host, own), *(way for lease in peers for way in self._to_another(lease))}

    def has_rules_about(self, host: Host, peers: Sequence[Host]) -> bool:
        """Return whether iptables has all rules, which the daemon adds in the background, table by table."""
        present = "\n".join(belongings(host).rules)
        return all(rule in present for peer in peers for rule in self._rules_about(peer))

    def _rules_about(self, peer: Host) -> Iterator[str]:
        """Return a part of one rule of each table, of the rules that the daemon adds last."""
        yield from ()

    def _by_device(self, host: Host, own: Lease) -> Iterator[str]:
        """Return the entries of the device, and the route to the network."""
        yield from ()

    def _to_another(self, lease: Lease) -> Iterator[str]:
        """Return the entries that lead to one peer."""
        yield from ()


class _Tunnel(Backend):
    def _rules_about(self, peer: Host) -> Iterator[str]:
        yield f"-A FLANNEL-D-{NETWORK} -d {peer.public_ip}/32 -j DROP"
        yield f"-A FLANNEL-Z-{NETWORK} -j CT --zone"
        yield f"-A FORWARD -j FLANNEL-A-{NETWORK}"


class _Udp(_Tunnel):
    name = "udp"
    device = "flannel0"
    mtu = 1472

    def _by_device(self, host: Host, own: Lease) -> Iterator[str]:
        address = own.subnet.network_address
        yield f"{self.device} tun mtu {self.mtu} txqlen 1000 UP LOWER_UP {address}/{NETWORK.prefixlen} accept_local 1"
        yield f"{NETWORK} dev {self.device} proto kernel scope link src {address}"


class _Vxlan(_Tunnel):
    name = "vxlan"
    device = "flannel.1"
    mtu = 1450

    def attrs(self, mac: str) -> dict[str, Any]:
        return {"BackendType": self.name, "BackendData": {"VtepMAC": mac}}

    def _by_device(self, host: Host, own: Lease) -> Iterator[str]:
        address = own.subnet.network_address
        yield (
            f"{self.device} vxlan id 1 local {host.public_ip} link eth1 port 8472 learning False address {own.mac} "
            f"mtu {self.mtu} UP LOWER_UP {address}/{NETWORK.prefixlen} accept_local 0"
        )
        yield f"{NETWORK} dev {self.device} proto kernel scope link src {address}"

    def _to_another(self, lease: Lease) -> Iterator[str]:
        address = lease.subnet.network_address
        yield f"{lease.subnet} via {address} dev {self.device} proto {ROUTE_PROTOCOL} onlink"
        yield f"neighbour {address} dev {self.device} lladdr {lease.mac} PERMANENT"
        yield f"fdb {lease.mac} dev {self.device} dst {lease.public_ip} self permanent"


class _HostGw(Backend):
    name = "host-gw"

    def attrs(self, mac: str) -> dict[str, Any]:
        return {"BackendType": self.name}

    def _foreign_public_ip(self, number: int) -> IPv4Address:
        """Return an address on the link that all hosts share."""
        return IPv4Address("172.17.8.130") + number % 100

    def _rules_about(self, peer: Host) -> Iterator[str]:
        for where in ("-d", "-i eth1"):  # in filter, and in raw
            yield f"-A FLANNEL-A-{NETWORK} -s {peer.public_ip}/32 {where}"

    def _to_another(self, lease: Lease) -> Iterator[str]:
        yield f"{lease.subnet} via {lease.public_ip} dev eth1 proto {ROUTE_PROTOCOL}"


UDP, VXLAN, HOST_GW, ALLOC = _Udp(), _Vxlan(), _HostGw(), Backend()


def over(*backends: Backend) -> pytest.MarkDecorator:
    """Parametrize a test with each of these as ``backend``."""
    return pytest.mark.parametrize("backend", backends, ids=str)


def over_stores(*backends: Backend, v2: Sequence[Backend] = ()) -> pytest.MarkDecorator:
    """Parametrize a test with each of these as ``backend``, with the leases in both stores of etcd (``api``).

    Over v2, make test runs it with the backends ``v2`` only, and make soak with the others.
    """
    params = [
        pytest.param(backend, api, id=f"{backend}-v{api.value}", marks=() if in_test else pytest.mark.soak)
        for api in (Api.V3, Api.V2)
        for backend in backends
        for in_test in [api is Api.V3 or backend in v2]
    ]
    return pytest.mark.parametrize(("backend", "api"), params)


def lease_key(subnet: IPv4Network) -> str:
    """Return the key of a subnet's lease in etcd."""
    return f"{ETCD_PREFIX}/subnets/{str(subnet).replace('/', '-')}"


def _leases(host: Host) -> dict[IPv4Network, Lease]:
    leases = {}
    for key in host.lab.etcd.list(f"{ETCD_PREFIX}/subnets"):
        subnet, value = IPv4Network(key.key.rpartition("/")[2].replace("-", "/")), json.loads(key.value)
        leases[subnet] = Lease(subnet, value["PublicIP"], value.get("BackendData", {}).get("VtepMAC", ""))
    return leases
