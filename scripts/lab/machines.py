"""Machines on the switch: hosts with their containers, and members of an etcd cluster."""

from __future__ import annotations

import os
import sys
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import TYPE_CHECKING

from lab.daemon import Daemon
from lab.etcd_server import EtcdServer
from lab.namespaces import Node

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lab.etcd_stores import Api
    from lab.lab import Lab

UNDERLAY = IPv4Interface("172.17.8.1/24")
FIRST_HOST = IPv4Address("172.17.8.101")
ETCD_PORT = 2379
# A new leader within a second or so, where the defaults take longer; a lost member may be replaced at any time.
MEMBER_ARGUMENTS = ("--heartbeat-interval=50", "--election-timeout=500", "--strict-reconfig-check=false")


class Container(Node):
    """A container's namespace: ``eth0`` with an address of the host's subnet, default route over docker0."""

    def __init__(self, host: Host, number: int) -> None:
        super().__init__(host.lab, f"{host.name}-c{number}")
        self.host = host
        self.number = number
        self.address = IPv4Address(0)

    def connect(self, docker0: IPv4Interface, mtu: int) -> None:
        """Plug the container into its host's docker0."""
        self.address = docker0.ip + self.number
        port = f"veth{self.number}"
        self.host.configure(
            f"link add {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {self.netns}",
            f"link set {port} master docker0 up",
        )
        self.configure(
            f"address add {self.address}/{docker0.network.prefixlen} dev eth0",
            "link set eth0 up",
            f"route add default via {docker0.ip}",
        )

    def ping_text(self, address: IPv4Address, count: int) -> str:
        """Return what ping prints, a line for each answer."""
        return self.run("ping", "-n", f"-c{count}", "-i0.1", "-W2", str(address), check=False).stdout


class Machine(Node):
    """A namespace with ``eth1`` on the switch."""

    def __init__(self, lab: Lab, name: str, address: IPv4Address) -> None:
        super().__init__(lab, name)
        self.public_ip = address

    def create(self) -> None:
        """Make it and plug it into the switch."""
        super().create()
        mtu = self.lab.mtu
        self.lab.switch.configure(
            f"link add {self.name} mtu {mtu} type veth peer name eth1 mtu {mtu} netns {self.netns}",
            f"link set {self.name} master br0 up",
        )
        self.configure(f"address add {self.public_ip}/{UNDERLAY.network.prefixlen} dev eth1", "link set eth1 up")

    def unplug(self) -> None:
        """Cut its link; connections are half-open from then on, since neither end gets a packet about it."""
        self.lab.switch.configure(f"link set {self.name} down")

    def plug_in(self) -> None:
        """Restore its link."""
        self.lab.switch.configure(f"link set {self.name} up")


class EtcdMember(EtcdServer):
    """An etcd on a machine of its own, which can be cut off."""

    def __init__(self, machine: Machine, peers: Mapping[str, str], api: Api) -> None:
        super().__init__(
            machine.dir,
            host=str(machine.public_ip),
            port=ETCD_PORT,
            netns=machine.netns,
            api=api,
            name=machine.name,
            peers=peers,
            arguments=MEMBER_ARGUMENTS,
        )
        self.machine = machine

    def cut(self) -> None:
        """Cut it off from the other members and all hosts."""
        self.machine.unplug()

    def mend(self) -> None:
        """Undo ``cut``."""
        self.machine.plug_in()


class Host(Machine):
    """A machine with a private /run, and in time a daemon, docker0 and containers."""

    def __init__(self, lab: Lab, number: int) -> None:
        super().__init__(lab, f"host{number}", FIRST_HOST + number - 1)
        self.number = number
        self.run_dir = self.dir / "run"
        self.log_file = self.dir / "flannelpy.log"
        self.daemons: list[Daemon] = []
        self.containers: list[Container] = []

    def enter(self, *argv: str) -> list[str]:
        """As everywhere, and with the host's own /run: ``ip netns exec`` has made a private mount namespace for it."""
        return super().enter("sh", "-c", 'mount -n --bind "$0" /run && exec "$@"', str(self.run_dir), *argv)

    def create(self) -> None:
        """Make the host and plug it into the switch."""
        self.run_dir.mkdir(parents=True)
        super().create()

    def start_daemon(
        self,
        *flags: str,
        env: Mapping[str, str] | None = None,
        endpoints: str | None = None,
        python: str = sys.executable,
    ) -> Daemon:
        """Start the flannelpy of ``python``, with the lab's etcd or other ``endpoints`` (empty: no such flag).

        The environment is ours without any FLANNELD_* variable, plus ``env``, and the host's name for its identity:
        all hosts of the lab have this machine's id.  LAB_DATAPATH has values of -datapath, which the hosts get in turn:
        with ``kernel,loop``, tests of the udp backend run on hosts that differ.
        """
        datapaths = os.environ.get("LAB_DATAPATH", "loop").split(",")
        datapath = {"FLANNELD_DATAPATH": datapaths[(self.number - 1) % len(datapaths)]}
        daemon = Daemon(
            self,
            flags,
            {**datapath, **(env or {})},
            self.lab.etcd_endpoints if endpoints is None else endpoints,
            python,
        )
        self.daemons.append(daemon)
        return daemon

    def kill_daemons(self) -> None:
        """End those that still run, without a chance to clean up."""
        for daemon in self.daemons:
            if daemon.process.poll() is None:
                daemon.kill()

    def log(self) -> str:
        """Return what all daemons of this host have logged."""
        return self.log_file.read_text() if self.log_file.exists() else ""

    def subnet_env(self) -> dict[str, str]:
        """Return the FLANNEL_* variables that a shell gets from sourcing the subnet file."""
        script = "set -a; . /run/flannel/subnet.env; env"
        lines = self.run("env", "-i", "sh", "-c", script).stdout.splitlines()
        return dict(line.split("=", 1) for line in lines if line.startswith("FLANNEL_"))

    def subnet(self) -> IPv4Network:
        """Return the subnet that this host has leased."""
        return IPv4Interface(self.subnet_env()["FLANNEL_SUBNET"]).network

    def add_container(self) -> Container:
        """Start a container the way Docker would, with the bridge address and MTU of the subnet file."""
        env = self.subnet_env()
        docker0, mtu = IPv4Interface(env["FLANNEL_SUBNET"]), int(env["FLANNEL_MTU"])
        if not self.containers:
            self.configure(
                f"link add docker0 mtu {mtu} type bridge", f"address add {docker0} dev docker0", "link set docker0 up"
            )
        container = Container(self, len(self.containers) + 1)
        container.create()
        container.connect(docker0, mtu)
        self.containers.append(container)
        return container
