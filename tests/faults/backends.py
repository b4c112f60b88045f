"""The backends, for tests that run over several: config and leases of each, and what it should have on a host."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Any, NamedTuple

import pytest
from lab import ETCD_PREFIX, Host
from support.hosts import belongings, subnet_in_file, ways

from flannelpy.marks import ROUTE_PROTOCOL

NETWORK = IPv4Network("11.0.0.0/16")


class Lease(NamedTuple):
    """Of one host; ``mac`` is empty where the backend has none."""

    subnet: IPv4Network
    public_ip: str
    mac: str


class Backend:
    """What does not differ, which is all of alloc.  ``device`` is empty where there is none."""

    name = "alloc"
    device = ""
    mtu = 1500

    def __str__(self) -> str:
        return self.name

    def config(self, network: IPv4Network = NETWORK) -> str:
        """The network config that asks for it."""
        return json.dumps({"Network": str(network), "Backend": {"Type": self.name}})

    def attrs(self, mac: str) -> dict[str, Any]:
        """What a lease tells beside public IP and identity."""
        return {}

    def lease(self, public_ip: str, mac: str = "02:00:00:00:00:01") -> str:
        """The value of the lease of a host without an identity."""
        return json.dumps({"PublicIP": public_ip, **self.attrs(mac)})

    def foreign_lease(self, subnet: IPv4Network, number: int = 0) -> tuple[str, str]:
        """Key and value of the lease of a host that does not exist."""
        mac = f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"
        return lease_key(subnet), self.lease(str(self._foreign_public_ip(number)), mac)

    def _foreign_public_ip(self, number: int) -> IPv4Address:
        return IPv4Address("10.0.0.0") + number

    def is_as_it_should_be(self, host: Host) -> bool:
        """Whether the host has all that carries packets to the others, and nothing else."""
        # The device's own route is the kernel's at first, and ours after it was removed.
        return {way.replace("proto 85 scope link", "proto kernel scope link") for way in ways(host)} == self.wanted(
            host
        )

    def wanted(self, host: Host) -> set[str]:
        """What hosts.ways has to show, by all leases that there are."""
        leases = _leases(host)
        own = leases.pop(subnet_in_file(host) or NETWORK)
        return {*self._by_device(host, own), *(way for lease in leases.values() for way in self._to_another(lease))}

    def has_rules_about(self, host: Host, peers: Sequence[Host]) -> bool:
        """Whether iptables has all rules, which the daemon adds in the background, table by table."""
        present = "\n".join(belongings(host).rules)
        return all(rule in present for peer in peers for rule in self._rules_about(peer))

    def _rules_about(self, peer: Host) -> Iterator[str]:
        """A part of one rule of each table, of those that the daemon adds last."""
        yield from ()

    def _by_device(self, host: Host, own: Lease) -> Iterator[str]:
        """The device, and the route to the network."""
        yield from ()

    def _to_another(self, lease: Lease) -> Iterator[str]:
        """What leads to one other host."""
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
        """On the link that all hosts share."""
        return IPv4Address("172.17.8.130") + number % 100

    def _rules_about(self, peer: Host) -> Iterator[str]:
        for where in ("-d", "-i eth1"):  # in filter, and in raw
            yield f"-A FLANNEL-A-{NETWORK} -s {peer.public_ip}/32 {where}"

    def _to_another(self, lease: Lease) -> Iterator[str]:
        yield f"{lease.subnet} via {lease.public_ip} dev eth1 proto {ROUTE_PROTOCOL}"


UDP, VXLAN, HOST_GW, ALLOC = _Udp(), _Vxlan(), _HostGw(), Backend()


def over(*backends: Backend) -> pytest.MarkDecorator:
    """The test is run with each as ``backend``."""
    return pytest.mark.parametrize("backend", backends, ids=str)


def lease_key(subnet: IPv4Network) -> str:
    """Where etcd has the lease of a subnet."""
    return f"{ETCD_PREFIX}/subnets/{str(subnet).replace('/', '-')}"


def _leases(host: Host) -> dict[IPv4Network, Lease]:
    leases = {}
    for key in host.lab.etcd.list(f"{ETCD_PREFIX}/subnets"):
        subnet, value = IPv4Network(key.key.rpartition("/")[2].replace("-", "/")), json.loads(key.value)
        leases[subnet] = Lease(subnet, value["PublicIP"], value.get("BackendData", {}).get("VtepMAC", ""))
    return leases
