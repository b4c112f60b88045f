"""Pods of two hosts, which Debian's CNI plugins create from flannelpy's subnet file.

No package has the flannel plugin.  ``delegated`` derives what the plugin derives from the manual's config and the
subnet file: see doCmdAdd in flannel_linux.go and getDelegateIPAM in flannel.go of flannel-io/cni-plugin.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any

import pytest
from lab import Container, Host, Lab, wait_for
from support.checks import check, wait_until_well
from support.overlay import transfer

PLUGINS = "/usr/lib/cni"
MANUAL = (Path(__file__).parents[2] / "docs/manual.md").read_text()


def flannel_config() -> dict[str, Any]:
    """Return the manual's config for the flannel plugin."""
    [section] = [text for text in re.split(r"^## ", MANUAL, flags=re.MULTILINE) if text.startswith("CNI\n")]
    config: dict[str, Any] = json.loads(re.findall(r"```json\n(.*?)```", section, re.DOTALL)[0])
    assert config["type"] == "flannel"
    return config


def delegated(config: Mapping[str, Any], env: Mapping[str, str], plugin: str) -> dict[str, Any]:
    """Return the config for the bridge plugin, or another one."""
    return {
        "type": plugin,
        "ipMasq": env["FLANNEL_IPMASQ"] != "true",
        "mtu": int(env["FLANNEL_MTU"]),
        "isGateway": True,
        **config["delegate"],
        "name": config["name"],
        "cniVersion": config["cniVersion"],
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": str(IPv4Interface(env["FLANNEL_SUBNET"]).network)}]],
            "routes": [{"dst": env["FLANNEL_NETWORK"]}],
            "dataDir": "/run/cni",  # a test has a private /run, but not a private /var/lib
        },
    }


class Pod(Container):
    """A network namespace that the bridge plugin, or another one, connects."""

    def __init__(self, host: Host, number: int, plugin: str = "bridge") -> None:
        super().__init__(host, number)
        self._config = delegated(flannel_config(), host.subnet_env(), plugin)
        self._result: dict[str, Any] = {}
        self.create()
        self._inside = self.popen("sleep", "infinity").pid

    def add(self) -> None:
        self._result = json.loads(self._call("ADD"))
        [address] = self._result["ips"]
        self.address = IPv4Address(IPv4Interface(address["address"]).ip)

    def delete(self) -> None:
        self._call("DEL", prevResult=self._result)

    def _call(self, command: str, **more: object) -> str:
        variables = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": f"pod{self.number}",
            "CNI_NETNS": f"/proc/{self._inside}/ns/net",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": PLUGINS,
        }
        environment = [f"{name}={value}" for name, value in variables.items()]
        config = json.dumps({**self._config, **more})
        return self.host.run("env", *environment, f"{PLUGINS}/{self._config['type']}", input=config).stdout


def reaches(pod: Pod, address: object) -> bool:
    return " 0% packet loss" in pod.run("ping", "-n", "-c1", "-W1", str(address), check=False).stdout


@pytest.mark.parametrize(("backend", "flags"), [("udp", ()), ("vxlan", ("-ip-masq",))])
def test_pods_of_two_hosts_reach_each_other_and_the_world(
    make_lab: Callable[..., Lab], backend: str, flags: tuple[str, ...]
) -> None:
    lab = make_lab(hosts=2)
    lab.put_config(f'{{"Network":"11.0.0.0/16","Backend":{{"Type":"{backend}"}}}}')
    lab.start_daemons("-iface=eth1", *flags)
    pods = [Pod(host, number) for host in lab.hosts for number in (1, 2)]
    for pod in pods:
        pod.add()
        assert pod.address in pod.host.subnet()
        mtu = pod.host.subnet_env()["FLANNEL_MTU"]
        assert f" mtu {mtu} " in pod.run("ip", "link", "show", "eth0").stdout
    for pod in pods:
        for other in pods:
            wait_for(partial(reaches, pod, other.address), 10, f"{other.name} for {pod.name}")
        assert reaches(pod, "172.17.8.1")
    transfer(pods[0], pods[-1], str(pods[-1].address), 1 << 20)
    for pod in pods:
        pod.delete()
        assert pod.run("ip", "link", "show", "eth0", check=False).returncode


def test_a_pod_whose_veth_is_at_no_bridge_is_named_and_one_with_a_route_of_its_own_is_not(lone: Host) -> None:
    lone.start_daemon("-iface=eth1").wait_ready()
    for pod in (Pod(lone, 1), Pod(lone, 2, "ptp")):
        pod.add()
        wait_for(partial(reaches, pod, lone.subnet().network_address + 1), 10, f"the host for {pod.name}")
    ports = json.loads(lone.run("ip", "-json", "link", "show", "type", "veth").stdout)
    [at_bridge] = [port["ifname"] for port in ports if port.get("master") == "cni0"]
    assert re.fullmatch("veth[0-9a-f]{8}", at_bridge)
    assert [port["ifname"][:4] for port in ports if "master" not in port and port["ifname"] != "eth1"] == ["veth"]
    wait_until_well(lone)
    lone.configure(f"link set {at_bridge} nomaster")
    assert [text.partition(":")[0] for text in check(lone).texts("container_unplugged")] == [at_bridge]
    lone.configure(f"link set {at_bridge} master cni0")
    wait_until_well(lone)
