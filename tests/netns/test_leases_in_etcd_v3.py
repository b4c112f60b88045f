"""What real daemons write into a real etcd v3, compared with recordings of flanneld v0.20.2.

Each of two daemons has a network for each of the recorded backends.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import ETCD_PREFIX, Lab
from lab.etcd_stores import Api, Key
from support.tenants import subnet_file

from flannelpy.host.subnet_file import previous_subnet

GOLDEN = Path(__file__).parents[1] / "golden"
NETWORKS = {"udp": "11.0.0.0/16", "vxlan": "12.0.0.0/16", "host-gw": "13.0.0.0/16"}
FLAGS = ("-iface=eth1", f"-networks={','.join(NETWORKS)}", "-etcd-api=3")

pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(hosts=2, api=Api.V3) as lab:
        for backend, network in NETWORKS.items():
            config = json.dumps({"Network": network, "Backend": {"Type": backend}})
            lab.etcd.put(f"{ETCD_PREFIX}/{backend}/config", config)
        for daemon in [host.start_daemon(*FLAGS) for host in lab.hosts]:
            daemon.wait_ready()
        yield lab


@pytest.fixture(params=NETWORKS)
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def recorded(backend: str, name: str) -> str:
    return (GOLDEN / f"flanneld-v0.20.2-{backend}" / name).read_text()


def recorded_leases(backend: str) -> dict[str, str]:
    """Return the recorded leases: values by keys."""
    return {
        pair["key"]: pair["value"]
        for pair in json.loads(recorded(backend, "etcd.json"))["kvs"]
        if pair["key"].startswith(f"{ETCD_PREFIX}/subnets/")
    }


def leases(lab: Lab, backend: str) -> tuple[Key, ...]:
    return lab.etcd.list(f"{ETCD_PREFIX}/{backend}/subnets")


def anonymous(text: str) -> str:
    """Return ``text`` without network, subnet, host and MAC, and without the key that only flannelpy's leases have."""
    text = re.sub(rf"^{ETCD_PREFIX}/.*subnets/", "", re.sub(r',"HostID":"host\d"', "", text))
    text = re.sub(r"172\.17\.8\.10\d", "HOST", re.sub(r"1[123]\.0\.\d+\.(\d)", r"1X.0.X.\1", text))
    return re.sub(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", "MAC", text)


def test_keys_and_values_are_the_originals(lab: Lab, backend: str) -> None:
    ours = {anonymous(lease.key): anonymous(lease.value) for lease in leases(lab, backend)}
    originals = {anonymous(key): anonymous(value) for key, value in recorded_leases(backend).items()}
    assert len(leases(lab, backend)) == len(lab.hosts) == len(recorded_leases(backend))
    assert ours == originals


def test_each_lease_has_the_originals_ttl(lab: Lab, backend: str) -> None:
    [granted] = set(re.findall(r"granted with TTL\((\d+)s\)", recorded(backend, "leases.txt")))
    for lease in leases(lab, backend):
        found = lab.etcd.v3.call("lease/timetolive", ID=lab.etcd.v3.lease_of(lease.key), keys=True)
        assert found["grantedTTL"] == granted
        assert len(found["keys"]) == 1


def test_the_subnet_file_is_the_originals(lab: Lab, backend: str) -> None:
    for host in lab.hosts:
        assert anonymous(subnet_file(host, backend).read_text()) == anonymous(recorded(backend, "subnet.env"))


def test_the_key_names_the_subnet_of_the_subnet_file(lab: Lab, backend: str) -> None:
    of_hosts = {json.loads(lease.value)["PublicIP"]: lease.key.rpartition("/")[2] for lease in leases(lab, backend)}
    for host in lab.hosts:
        subnet = previous_subnet(subnet_file(host, backend))
        assert subnet is not None
        assert of_hosts[str(host.public_ip)] == f"{subnet.network_address}-{subnet.prefixlen}"


def test_release_deletes_the_leases_of_this_host(lab: Lab) -> None:
    host, other = lab.hosts
    host.daemons[-1].stop()
    done = host.run(
        *(sys.executable, "-P", "-m", "flannelpy", f"-etcd-endpoints={lab.etcd.url}", "-host-id=host1", *FLAGS),
        *("-cleanup", "-release"),
    )
    assert done.stderr.count("Released the lease of ") == len(NETWORKS)
    left = [lease for backend in NETWORKS for lease in leases(lab, backend)]
    assert {json.loads(lease.value)["PublicIP"] for lease in left} == {str(other.public_ip)}
