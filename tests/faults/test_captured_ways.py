"""Networks that would capture packets to the hosts' own link or to etcd: refused, and waited on until corrected."""

from __future__ import annotations

import json
from collections.abc import Callable
from ipaddress import IPv4Network

import pytest
from faults.backends import ALLOC, HOST_GW, UDP, VXLAN, Backend, over
from lab import Lab, wait_for

pytestmark = [pytest.mark.usefixtures("root"), pytest.mark.sample("backend", 1)]

GOOD = "11.0.0.0/16"


def put_config(lab: Lab, backend: Backend, network: str) -> None:
    lab.put_config(json.dumps({"Network": network, "Backend": {"Type": backend.name}, "SubnetLen": 28}))


def check_refused_until_corrected(lab: Lab, backend: Backend, networks: dict[str, str], *flags: str) -> None:
    """Assert that each network is rejected with its message in ``networks``, and that no route of the host changes."""
    [host] = lab.hosts
    before = host.run("ip", "route").stdout
    put_config(lab, backend, next(iter(networks)))
    daemon = host.start_daemon("-iface=eth1", *flags)
    for network, why in networks.items():
        put_config(lab, backend, network)
        daemon.wait_for_log(rf"E.*Failed to retrieve network config: Network {network} .*{why}")
        assert host.run("ip", "route").stdout == before
    put_config(lab, backend, GOOD)
    daemon.wait_ready()
    assert daemon.stop() == 0


@over(UDP, VXLAN, HOST_GW)
def test_a_network_inside_the_link_is_refused(make_lab: Callable[..., Lab], backend: Backend) -> None:
    """The network is the link's, or a part of it with or without this host and etcd."""
    networks = ("172.17.8.0/25", "172.17.8.0/24", "172.17.8.128/25", "172.17.8.64/26")
    why = r"would capture packets to hosts in 172\.17\.8\.0/24, the network of eth1 \(172\.17\.8\.101\)"
    check_refused_until_corrected(make_lab(hosts=1), backend, dict.fromkeys(networks, why))


def test_alloc_accepts_such_a_network_because_it_adds_no_routes(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=1)
    [host] = lab.hosts
    put_config(lab, ALLOC, "172.17.8.0/24")
    lab.etcd_request("PUT", "/coreos.com/network/subnets/172.17.8.16-28", value=json.dumps({"PublicIP": "172.17.8.40"}))
    host.start_daemon("-iface=eth1").wait_ready()
    taken = ("172.17.8.101/32", "172.17.8.1/32", "172.17.8.40/32", "172.17.8.16/28")
    assert not any(host.subnet().overlaps(IPv4Network(one)) for one in taken)


@over(UDP, VXLAN, HOST_GW)
def test_a_network_around_the_link_is_accepted_and_our_subnet_lies_outside_the_link(
    make_lab: Callable[..., Lab], backend: Backend
) -> None:
    lab = make_lab(hosts=1)
    [host] = lab.hosts
    lab.put_config(
        json.dumps({"Network": "172.17.0.0/20", "SubnetLen": 24, "SubnetMin": "172.17.8.0", "SubnetMax": "172.17.9.0",
                    "Backend": {"Type": backend.name}})
    )  # fmt: skip
    host.start_daemon("-iface=eth1").wait_ready()
    assert host.subnet() == IPv4Network("172.17.9.0/24")


@over(UDP, VXLAN, HOST_GW)
def test_a_network_inside_that_of_a_peer_is_refused(make_lab: Callable[..., Lab], backend: Backend) -> None:
    """The address of a point-to-point link may lie outside the network to which the link leads."""
    lab = make_lab(hosts=1)
    lab.hosts[0].configure("address flush dev eth1", "address add 192.0.2.5 peer 172.17.8.0/24 dev eth1")
    lab.switch.configure("route add 192.0.2.5 dev br0")
    why = r"would capture packets to hosts in 172\.17\.8\.0/24, the network of eth1 \(192\.0\.2\.5\)"
    check_refused_until_corrected(lab, backend, dict.fromkeys(("172.17.8.0/24", "172.17.8.64/26"), why))


@over(UDP, VXLAN)
def test_an_address_without_a_network_has_neighbours_all_the_same(
    make_lab: Callable[..., Lab], backend: Backend
) -> None:
    """Some clouds have such links: the host has 172.17.8.101/32, and a router leads to all peers."""
    lab = make_lab(hosts=1)
    [host] = lab.hosts
    host.configure(
        "address flush dev eth1",
        "address add 172.17.8.101/32 dev eth1",
        "route add default via 172.17.8.1 dev eth1 onlink",
    )
    lab.switch.configure("address add 172.17.99.9/32 dev br0")
    check_refused_until_corrected(
        lab,
        backend,
        {
            "172.17.0.0/16": r"would capture packets to the neighbours of eth1 \(172\.17\.8\.101/32\)",
            "172.17.8.64/26": r"would capture packets to the neighbours of eth1 \(172\.17\.8\.101/32\)",
            "172.17.8.0/26": r"would capture packets to 172\.17\.8\.1, an address of the etcd endpoint 172\.17\.8\.1",
        },
    )
    host.configure("route add 172.17.8.0/24 via 172.17.8.1 dev eth1 onlink proto static")
    put_config(lab, backend, "172.17.0.0/16")
    host.start_daemon("-iface=eth1").wait_ready()
    assert host.run("ip", "route", "get", "172.17.8.1").stdout.split()[:5] == [
        "172.17.8.1",
        "via",
        "172.17.8.1",
        "dev",
        "eth1",
    ]


@over(UDP, VXLAN)
def test_etcd_behind_a_router_and_inside_the_network(make_lab: Callable[..., Lab], backend: Backend) -> None:
    lab = make_lab(hosts=1)
    [host] = lab.hosts
    host.configure("route add default via 172.17.8.1")
    endpoints = _endpoint_behind_the_switch(lab)
    networks = {"10.50.0.0/16": "would capture packets to 10.50.0.9, an address of the etcd endpoint 10.50.0.9"}
    put_config(lab, backend, "10.50.0.0/16")
    daemon = host.start_daemon("-iface=eth1", endpoints=endpoints)
    daemon.wait_for_log(rf"E.*Failed to retrieve network config: Network 10.50.0.0/16 {networks['10.50.0.0/16']}")
    # A separate route leads to etcd, and the subnet must not contain etcd.
    host.configure("route add 10.50.0.0/25 via 172.17.8.1 proto static")
    daemon.wait_ready()
    assert not host.subnet().overlaps(IPv4Network("10.50.0.9/32"))
    assert "via 172.17.8.1 dev eth1" in host.run("ip", "route", "get", "10.50.0.9").stdout


def test_host_gw_adds_routes_to_leased_subnets_only_and_none_around_etcd(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=1)
    [host] = lab.hosts
    host.configure("route add default via 172.17.8.1")
    put_config(lab, HOST_GW, "10.50.0.0/16")
    around, beside = "10.50.0.0-28", "10.50.0.16-28"
    for name in (around, beside):
        value = json.dumps({"PublicIP": "172.17.8.150", "BackendType": "host-gw"})
        lab.etcd_request("PUT", f"/coreos.com/network/subnets/{name}", value=value)
    daemon = host.start_daemon("-iface=eth1", endpoints=_endpoint_behind_the_switch(lab))
    daemon.wait_for_log("W.*Ignoring subnet 10.50.0.0/28: it contains 10.50.0.9, an address of etcd")
    daemon.wait_for_log("Subnet added: 10.50.0.16/28 via 172.17.8.150")
    assert "via 172.17.8.1 dev eth1" in host.run("ip", "route", "get", "10.50.0.9").stdout


def _endpoint_behind_the_switch(lab: Lab) -> str:
    """Give etcd the address 10.50.0.9, for which the switch is the router."""
    lab.switch.configure("address add 10.50.0.9/32 dev lo")
    lab.switch.run(
        "iptables", "-t", "nat", "-A", "PREROUTING", "-d", "10.50.0.9", "-j", "DNAT", "--to-destination", "172.17.8.1"
    )
    return "http://10.50.0.9:2379"


def test_a_host_that_an_earlier_run_cut_off_recovers_when_the_config_is_corrected(make_lab: Callable[..., Lab]) -> None:
    """Device and subnet file are those of a version before the marks; the route to etcd leads into the device."""
    lab = make_lab(hosts=1)
    [host] = lab.hosts
    host.configure(
        "link add flannel.1 mtu 1450 type vxlan id 1 dev eth1 local 172.17.8.101 dstport 8472 nolearning",
        "address add 172.17.8.32/25 dev flannel.1",
        "link set flannel.1 up",
    )
    assert "dev flannel.1" in host.run("ip", "route", "get", "172.17.8.1").stdout
    (host.run_dir / "flannel").mkdir()
    (host.run_dir / "flannel/subnet.env").write_text(
        "FLANNEL_NETWORK=172.17.8.0/25\nFLANNEL_SUBNET=172.17.8.33/28\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
    )
    put_config(lab, VXLAN, "172.17.8.0/25")
    daemon = host.start_daemon("-iface=eth1")
    daemon.wait_for_log(r"W.*Removed own route to 172.17.8.0/25 by flannel.1: no etcd endpoint answers", 20)
    daemon.wait_for_log("E.*Network 172.17.8.0/25 would capture packets", 20)
    put_config(lab, VXLAN, GOOD)
    daemon.wait_ready()
    assert "dev eth1" in host.run("ip", "route", "get", "172.17.8.1").stdout


def test_a_marked_device_is_known_without_a_subnet_file_and_all_its_routes_to_etcd_are_removed(
    make_lab: Callable[..., Lab],
) -> None:
    lab = make_lab(hosts=1)
    [host] = lab.hosts
    host.configure(
        "tuntap add flannel4 mode tun",
        "link set flannel4 up alias 'flannelpy /run/flannel/subnet.env'",
        "address add 172.17.8.48/25 dev flannel4",
        "route add 172.17.8.0/28 dev flannel4 proto 85",
        "route add 172.17.8.1/32 dev flannel4 metric 7",
    )
    put_config(lab, UDP, "172.17.8.0/25")
    daemon = host.start_daemon("-iface=eth1")
    for route in ("172.17.8.0/25", "172.17.8.0/28", "172.17.8.1/32"):
        daemon.wait_for_log(rf"W.*Removed own route to {route} by flannel4: no etcd endpoint answers", 20)
    put_config(lab, UDP, GOOD)
    daemon.wait_ready()
    assert daemon.stop() == 0


def test_a_device_of_another_program_keeps_its_routes_though_etcd_lies_behind_them(
    make_lab: Callable[..., Lab],
) -> None:
    """The device has another address than our lease."""
    lab = make_lab(hosts=1)
    [host] = lab.hosts
    host.configure(
        "link add flannel.1 mtu 1450 type vxlan id 1 dev eth1 local 172.17.8.101 dstport 8472 nolearning",
        "address add 172.17.8.48/25 dev flannel.1",
        "link set flannel.1 up",
    )
    before = host.run("ip", "route").stdout
    put_config(lab, VXLAN, GOOD)
    daemon = host.start_daemon("-iface=eth1")
    daemon.wait_for_log("E.*Failed to retrieve network config: http://172.17.8.1:2379: ", 20)
    wait_for(lambda: "Failed" in daemon.log(), 1, "a second look")
    assert host.run("ip", "route").stdout == before
    assert daemon.stop() == 0


def test_our_own_address_inside_our_own_subnet_is_refused_at_start(make_lab: Callable[..., Lab]) -> None:
    """Restart with the bridge of the containers as the interface, and with a reservation around the host itself."""
    lab = make_lab(hosts=1)
    [host] = lab.hosts
    lab.put_config('{"Network":"11.0.0.0/16"}')
    daemon = host.start_daemon("-iface=eth1")
    daemon.wait_ready()
    host.add_container()
    bridge, own = str(host.subnet()[1]), str(host.subnet())
    assert daemon.stop() == 0
    before = lab.leases()
    for flags in (["-iface=docker0"], [f"-iface={bridge}"], ["-iface=eth1", f"-public-ip={bridge}"]):
        daemon = host.start_daemon(*flags)
        assert daemon.process.wait(10) == 1
        assert f"our address {bridge} lies inside our own subnet {own}, where" in daemon.log().splitlines()[-1]
    assert [lease["value"] for lease in lab.leases()] == [lease["value"] for lease in before]
    lab.put_config('{"Network":"172.16.0.0/12","SubnetLen":24}')
    lab.etcd_request("PUT", "/coreos.com/network/subnets/172.17.8.0-24", value='{"PublicIP":"172.17.8.101"}')
    daemon = host.start_daemon("-iface=eth1")
    assert daemon.process.wait(10) == 1
    assert "our address 172.17.8.101 lies inside our own subnet 172.17.8.0/24, where" in daemon.log()


@pytest.mark.parametrize("address", ["172.17.8.255", "172.17.8.0"])
def test_a_public_ip_that_the_link_gives_to_no_host_is_refused(make_lab: Callable[..., Lab], address: str) -> None:
    lab = make_lab(hosts=1)
    daemon = lab.hosts[0].start_daemon("-iface=eth1", f"-public-ip={address}")
    assert daemon.process.wait(10) == 2
    refusal = "must be the address of a host; this one is the network or broadcast address of 172.17.8.0/24"
    assert daemon.log().splitlines()[-1].endswith(f"bad value '{address}' for -public-ip: {refusal}")
