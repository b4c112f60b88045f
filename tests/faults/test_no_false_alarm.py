"""``flannelpy status`` and ``flannelpy check`` find nothing on healthy hosts of many kinds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from faults.backends import ALLOC, HOST_GW, UDP, VXLAN, Backend
from lab import ETCD_PREFIX, Host, Lab, wait_connected, wait_for
from lab.etcd_server import EtcdServer, ServerTls
from lab.etcd_stores import Api
from support import datapaths
from support.checks import check, set_up, status
from support.datapaths import KERNEL
from support.etcd_faults import issue_certificates
from support.hosts import belongings
from support.tenants import NETWORKS, Tenant

pytestmark = pytest.mark.usefixtures("root")

MakeLab = Callable[..., Lab]
DEADLINE = 30


def assert_healthy(hosts: Sequence[Host], *flags: str, of_status: Sequence[str] = ()) -> None:
    """Assert that neither command has anything to say, nor changes anything; ``of_status``: flags of status."""
    for host in hosts:
        wait_for(partial(has_zone, host), DEADLINE, "the last of the rules")
        before = belongings(host), sysctls(host)
        found = status(host, *of_status)
        checked = check(host, *flags)
        assert found == ({}, 0)
        assert (checked.exit_code, checked.flaws) == (0, []), checked
        assert (belongings(host), sysctls(host)) == before


def is_well(host: Host) -> bool:
    return status(host) == ({}, 0)


def has_zone(host: Host) -> bool:
    """Return whether the last rules of a start are there: with masquerading, the zone of a tunnel's datagrams."""
    found = belongings(host)
    is_masqueraded = any("MASQUERADE" in rule for rule in found.rules)
    has_tunnel = any("flannel" in device for device in found.devices)
    return not (is_masqueraded and has_tunnel) or any("--zone" in rule for rule in found.rules)


def sysctls(host: Host) -> str:
    return host.run("sh", "-c", "grep -rs . /proc/sys/net/ipv4/conf").stdout


def without_ttl(leases: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    return [{key: value for key, value in lease.items() if key != "ttl"} for lease in leases]


def wait_for_pings(host: Host, count: int, *flags: str) -> None:
    """Return when a check has asked so many addresses of peers, and each answers."""

    def answered() -> bool:
        echoes = [line["echo"] for line in check(host, *flags).document["lines"] if "echo" in line]
        return len(echoes) == count and all(echo["received"] for echo in echoes)

    wait_for(answered, DEADLINE, f"{count} answers of peers", pause=0.3)


@pytest.mark.parametrize(
    "masquerade",
    [pytest.param(("-ip-masq",), id="-ip-masq"), pytest.param((), id="without -ip-masq", marks=pytest.mark.soak)],
)
@pytest.mark.parametrize(
    ("backend", "api"),
    [(UDP, Api.V2), (VXLAN, Api.V3), (HOST_GW, Api.V2), (ALLOC, Api.V3)],
    ids=lambda value: str(value),
)
def test_backends_and_stores(make_lab: MakeLab, backend: Backend, api: Api, masquerade: Sequence[str]) -> None:
    lab = make_lab(hosts=2, api=api)
    lab.put_config(backend.config())
    set_up(lab, "-iface=eth1", *masquerade)
    before = without_ttl(lab.leases())
    assert_healthy(lab.hosts, *masquerade)
    assert without_ttl(lab.leases()) == before
    if masquerade:
        daemon = lab.hosts[0].daemons[-1]
        assert daemon.stop() == 0
        lab.hosts[0].start_daemon("-iface=eth1", *masquerade).wait_ready()
        assert_healthy(lab.hosts, *masquerade)  # at once


def test_the_kernels_datapath(make_lab: MakeLab) -> None:
    lab = make_lab(hosts=2)
    lab.put_config()
    set_up(lab, *KERNEL)
    assert_healthy(lab.hosts, "-ip-masq")
    assert [datapaths.status(host)["datapath"] for host in lab.hosts] == ["kernel", "kernel"]
    assert lab.hosts[0].daemons[-1].stop() == 0
    lab.hosts[0].start_daemon(*KERNEL).wait_ready()
    assert_healthy(lab.hosts, "-ip-masq")  # at once


def test_direct_routes(make_lab: MakeLab) -> None:
    lab = make_lab(hosts=2, api=Api.V3)
    lab.put_config('{"Network": "11.0.0.0/16", "Backend": {"Type": "vxlan", "DirectRouting": true}}')
    set_up(lab, "-iface=eth1")
    assert_healthy(lab.hosts)


def test_docker_drops_what_it_does_not_know(make_lab: MakeLab) -> None:
    """Beside docker0, Docker has a network of its own, and its policy drops what flannelpy's rules do not accept."""
    lab = make_lab(hosts=2)
    lab.put_config()
    for host in lab.hosts:
        host.configure("link add br-1234 type bridge", "address add 172.30.0.1/16 dev br-1234", "link set br-1234 up")
        host.run("iptables", "-P", "FORWARD", "DROP")
    set_up(lab, "-iface=eth1")
    assert_healthy(lab.hosts)


def test_rp_filter_is_strict_on_all_interfaces(make_lab: MakeLab) -> None:
    lab = make_lab(hosts=2, api=Api.V3)
    lab.put_config(VXLAN.config())
    for host in lab.hosts:
        host.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.default.rp_filter=1")
    set_up(lab, "-iface=eth1")
    assert_healthy(lab.hosts)


def test_several_networks(make_lab: MakeLab) -> None:
    lab = make_lab(hosts=2, api=Api.V3)
    names = f"-networks={','.join(NETWORKS)}"
    for (name, network), backend in zip(NETWORKS.items(), (UDP, HOST_GW), strict=True):
        lab.etcd.put(f"{ETCD_PREFIX}/{name}/config", backend.config(network))
    for daemon in [host.start_daemon("-iface=eth1", names) for host in lab.hosts]:
        daemon.wait_ready()
    for host in lab.hosts:
        for name in NETWORKS:
            Tenant(host, name).start()
    for host in lab.hosts:
        wait_for_pings(host, 5, names)  # public IPs, bridges, and one tunnel
    assert_healthy(lab.hosts, names, of_status=["-subnet-dir=/run/flannel/networks"])


def test_a_public_ip_of_choice(make_lab: MakeLab) -> None:
    lab = make_lab(hosts=2)
    lab.put_config()
    flags = []
    for host in lab.hosts:
        second = host.public_ip + 100
        host.configure(f"address add {second}/24 dev eth1")
        flags.append(f"-public-ip={second}")
    wait_connected([host.start_daemon(flag) for host, flag in zip(lab.hosts, flags, strict=True)])
    for host in lab.hosts:
        host.add_container()
    for host, flag in zip(lab.hosts, flags, strict=True):
        wait_for_pings(host, 3, flag)
        assert_healthy([host], flag)


def test_reservations(make_lab: MakeLab) -> None:
    lab = make_lab(hosts=2)
    lab.put_config()
    for host, subnet in zip(lab.hosts, ("11.0.7.0-24", "11.0.8.0-24"), strict=True):
        lab.etcd.put(f"{ETCD_PREFIX}/subnets/{subnet}", UDP.lease(str(host.public_ip)))
    set_up(lab, "-iface=eth1")
    assert [str(host.subnet()) for host in lab.hosts] == ["11.0.7.0/24", "11.0.8.0/24"]
    assert_healthy(lab.hosts)


def test_a_cluster_of_etcd(make_lab: MakeLab) -> None:
    lab = make_lab(hosts=2, api=Api.V3, etcd_members=3)
    lab.put_config()
    set_up(lab, "-iface=eth1")
    assert_healthy(lab.hosts)


def test_etcd_with_tls(make_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_lab(hosts=2, api=Api.V3)
    lab.put_config()
    lab.etcd.stop()
    address = lab.etcd.url.removeprefix("http://").partition(":")[0]
    issue_certificates(tmp_path, address)
    tls = ServerTls(tmp_path / "server.crt", tmp_path / "server.key", client_ca=tmp_path / "ca.crt")
    with EtcdServer(lab.dir / "etcd", host=address, port=2379, netns=lab.switch.netns, api=Api.V3, tls=tls) as etcd:
        files = {"cafile": "ca.crt", "certfile": "client.crt", "keyfile": "client.key"}
        flags = [f"-etcd-endpoints={etcd.url}", *(f"-etcd-{name}={tmp_path / file}" for name, file in files.items())]
        wait_connected([host.start_daemon("-iface=eth1", *flags, endpoints="") for host in lab.hosts])
        for host in lab.hosts:
            host.add_container()
        for host in lab.hosts:
            wait_for_pings(host, 3, *flags)
        assert_healthy(lab.hosts, *flags)


def test_hosts_without_containers(make_lab: MakeLab) -> None:
    """The only warning is true: the bridge of the other host does not answer, because there is none."""
    lab = make_lab(hosts=2, api=Api.V3)
    lab.put_config(VXLAN.config())
    wait_connected([host.start_daemon("-iface=eth1") for host in lab.hosts])
    for host in lab.hosts:
        wait_for(partial(is_well, host), DEADLINE, "no problems", pause=0.3)
        checked = check(host)
        assert (checked.exit_code, checked.codes("bad"), checked.codes("warning")) == (0, set(), {"bridge_silent"})
