"""Containers of a host whose daemon has several networks."""

from __future__ import annotations

import subprocess
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path

from lab import Container, Host

NETWORKS = {"blue": IPv4Network("11.1.0.0/16"), "green": IPv4Network("11.2.0.0/16")}


def subnet_file(host: Host, name: str) -> Path:
    return host.run_dir / f"flannel/networks/{name}.env"


class Tenant(Container):
    """A container behind a bridge of its own network's."""

    def __init__(self, host: Host, name: str) -> None:
        super().__init__(host, 1)
        self.network = name
        self.name = f"{host.name}-{name}"
        self.netns = f"{host.lab.prefix}-{host.name}-c{1 + list(NETWORKS).index(name)}"

    def start(self) -> None:
        """As Docker would with a network of that bridge."""
        text = dict(line.split("=") for line in subnet_file(self.host, self.network).read_text().splitlines())
        bridge, mtu = IPv4Interface(text["FLANNEL_SUBNET"]), int(text["FLANNEL_MTU"])
        self.create()
        self.address = bridge.ip + 1
        self.subnet = bridge.network
        self.host.configure(
            f"link add {self.network} mtu {mtu} type bridge",
            f"address add {bridge} dev {self.network}",
            f"link set {self.network} up",
            f"link add to-{self.network} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {self.netns}",
            f"link set to-{self.network} master {self.network} up",
        )
        self.configure(
            f"address add {self.address}/24 dev eth0", "link set eth0 up", f"route add default via {bridge.ip}"
        )

    def ping(self, other: Tenant) -> subprocess.CompletedProcess[str]:
        return self.run("ping", "-n", "-c2", "-i0.1", "-W1", str(other.address), check=False)
