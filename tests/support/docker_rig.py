"""Hosts of a lab with a real Docker each, for tests, and what containers and hosts have to reach."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address

from lab import Container, Host, Lab, Node, wait_connected, wait_for
from lab.docker_packages import Release
from lab.dockers import Docker, DockerContainer
from support.overlay import listening, traffic, transfer

#: The switch of a lab, which is outside of the network.
OUTSIDE = "172.17.8.1"
Sender = Host | DockerContainer


@dataclass
class Rig:
    """Hosts side by side, each with its Docker and a container."""

    lab: Lab
    dockers: Sequence[Docker]
    containers: Sequence[DockerContainer]
    flags: Sequence[str] = ()

    @property
    def hosts(self) -> Sequence[Host]:
        """Of the lab."""
        return self.lab.hosts

    def start_flannelpy(self, host: Host) -> None:
        """Start one that is to know all others, and return when they know each other."""
        others = [other.daemons[-1] for other in self.hosts if other is not host]
        wait_connected([host.start_daemon("-iface=eth1", *self.flags), *others])

    def look(self) -> None:
        """Learn what has changed because containers were started again."""
        for docker, container in zip(self.dockers, self.containers, strict=True):
            wait_for(docker.runs_containers, 30, f"the container of {docker.name}")
            container.look()


@contextmanager
def rig(release: Release, config: str, *flags: str, hosts: int = 2, options: Sequence[str] = ()) -> Iterator[Rig]:
    """A rig on fresh hosts: nothing forwards yet.  ``flags`` are flannelpy's, ``options`` are dockerd's."""
    with Lab(hosts=hosts) as lab, ExitStack() as stack:
        lab.put_config(config)
        for host in lab.hosts:
            host.run("sh", "-c", "echo 0 >/proc/sys/net/ipv4/ip_forward")
        lab.start_daemons("-iface=eth1", *flags)
        dockers = [stack.enter_context(Docker(host, release)) for host in lab.hosts]
        for docker in dockers:
            docker.start(*options)
            docker.import_image()
        yield Rig(lab, dockers, [docker.run_container("c1", "--restart=always") for docker in dockers], flags)


def reaches(sender: Node, address: object, count: int = 3) -> bool:
    """Whether all of so many pings are answered."""
    return not sender.run("ping", "-n", f"-c{count}", "-i0.2", "-W1", str(address), check=False).returncode


def assert_connected(sender: Node, receiver: DockerContainer | Container, size: int = 1 << 20) -> None:
    """Pings are answered, and bytes arrive over TCP."""
    assert reaches(sender, receiver.address)
    transfer(sender, receiver, str(receiver.address), size)


def seen_source(sender: Node, receiver: Node, address: object, port: int = 8000, served: int = 8000) -> IPv4Address:
    """The address that a TCP connection comes from, for a server behind ``address:port`` that listens at ``served``."""
    with listening(receiver, "tcp-peer", str(served)) as server:
        traffic(sender, "tcp-connect", str(address), str(port))
        output, _ = server.communicate(timeout=10)
    return IPv4Address(output.strip())


def tunnel_address(host: Host, backend: str) -> IPv4Address:
    """From which the host itself sends into the network."""
    return host.public_ip if backend == "host-gw" else host.subnet().network_address
