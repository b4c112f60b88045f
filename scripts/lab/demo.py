"""The walk-through: three hosts, a flannelpy on each, and containers that reach each other across them.

usage: python -m lab.demo [--backend=udp | --backend=vxlan | --backend=host-gw] [--api=3 | --api=2] [--docker=VERSION]
[--keep], or down

Exit code 0: every container answered every other one, with the TTL that it should have on that way.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple, Protocol

from lab import ETCD_PREFIX, Lab, LabExistsError, lab_exists, remove_lab, wait_connected, wait_for
from lab.docker_packages import RELEASES, unpack
from lab.dockers import IMAGE, START, Docker, remove_cgroups
from lab.etcd_stores import Api

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Address

    from lab import Container, Host, Node
    from lab.dockers import DockerContainer

PREFIX = "flannelpy-demo"
PINGS = 3
LOG_TAIL = 20


class Pinger(Protocol):
    """A container, of a lab or of Docker."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def address(self) -> IPv4Address: ...  # noqa: D102

    def ping_text(self, address: IPv4Address, count: int) -> str: ...  # noqa: D102


Matrix = dict[tuple[Pinger, Pinger], "Reply | None"]


class Reply(NamedTuple):
    """What one container heard from another."""

    milliseconds: float
    ip_ttl: int


class Backend(NamedTuple):
    """What of the story depends on how packets travel; ``routes``: to each subnet, ``ip_ttl``: of a ping's answer."""

    name: str
    does: str
    has: str
    shown: Sequence[str]
    routes: bool
    ip_ttl: int
    why: str

    @property
    def config(self) -> str:
        """The network config that asks for it."""
        return f'{{"Network":"11.0.0.0/16","Backend":{{"Type":"{self.name}"}}}}'


UDP = Backend(
    name="udp",
    does="opens the device flannel0",
    has="its device, its routes",
    shown=["ip -4 address show flannel0", "ip route"],
    routes=False,
    ip_ttl=60,
    why="in the kernel of either host and one in either flannelpy.",
)
VXLAN = Backend(
    name="vxlan",
    does="makes the device flannel.1",
    has="its device, its routes, and where they lead",
    shown=[
        "ip -4 address show flannel.1",
        "ip route",
        "ip neighbour show dev flannel.1",
        "bridge fdb show dev flannel.1",
    ],
    routes=True,
    ip_ttl=62,
    why="in the kernel of either host. No flannelpy touches them: the kernels send them to each other in VXLAN.",
)
HOST_GW = Backend(
    name="host-gw",
    does="needs no device",
    has="its routes",
    shown=["ip route"],
    routes=True,
    ip_ttl=62,
    why="in the kernel of either host. No flannelpy touches them, and no tunnel: each host is a router to the others.",
)
BACKENDS = {f"--backend={backend.name}": backend for backend in (UDP, VXLAN, HOST_GW)}
APIS = {f"--api={api.value}": api for api in (Api.V3, Api.V2)}
#: What a person enters to store the network config.
PUTS = {Api.V3: "etcdctl put", Api.V2: "ETCDCTL_API=2 etcdctl set"}
RUNTIMES = {f"--docker={name}": name for name in RELEASES}
CHOICES = (BACKENDS, APIS, RUNTIMES)
_OPTIONAL = " ".join("[" + " | ".join(choice) + "]" for choice in CHOICES)
USAGE = f"usage: python -m lab.demo {_OPTIONAL} [--keep], or down"


def walk_through(lab: Lab, backend: Backend, api: Api, dockers: Sequence[Docker]) -> bool:
    """Tell the whole story, with a real Docker for each host if there are any.  Returns whether it ended well."""
    print_the_hosts(lab, backend, api)
    if not dockers:
        return print_the_pings(print_the_containers(lab), backend)
    containers = print_the_dockers(dockers)
    if not print_the_pings(containers, backend):
        return False
    print_the_restarts(dockers[0], lab.hosts[1])
    for container in containers:
        container.look()
    return print_the_pings(containers, backend, " again")


def print_the_hosts(lab: Lab, backend: Backend, api: Api) -> None:
    """All that comes before containers."""
    print_the_rack(lab)
    print_the_config(lab, backend, api)
    print_the_daemons(lab, backend)
    for host in lab.hosts:
        print_a_host(host, backend)
    print_the_leases(lab)


def print_the_rack(lab: Lab) -> None:
    """Who is there."""
    title("Three hosts on one switch")
    say("Each is a network namespace with its own interfaces, routes and /run. etcd runs on the switch.")
    say("")
    say(f"  switch   172.17.8.1     etcd at {lab.etcd.url}")
    for host in lab.hosts:
        say(f"  {host.name}    {host.public_ip}   on eth1")


def print_the_config(lab: Lab, backend: Backend, api: Api) -> None:
    """Print the one thing that a person configures."""
    title("The network config, stored in etcd once")
    say("Every host will get a subnet of it; a /24, as no other length is asked for.")
    lab.put_config(backend.config)
    say(f"\n  switch$ {PUTS[api]} {ETCD_PREFIX}/config '{backend.config}'")


def print_the_daemons(lab: Lab, backend: Backend) -> None:
    """Print the command that starts flannelpy on every host."""
    title("A flannelpy on every host")
    say(f"It leases a subnet, {backend.does}, and learns the subnets of the others from etcd.\n")
    for host in lab.hosts:
        say(f"  {prompt(host)} flannelpy -iface=eth1 -etcd-endpoints={lab.etcd.url} &")
    lab.start_daemons("-iface=eth1")
    say(f"\nWhat {lab.hosts[0].name} has logged:\n")
    say(indented(lab.hosts[0].log()))


def print_a_host(host: Host, backend: Backend) -> None:
    """Print what has changed on one host."""
    title(f"{host.name}: its subnet, {backend.has}")
    if backend.routes:
        wait_for(lambda: has_all_routes(host), 10, f"all routes of {host.name}")
    for command in ("cat /run/flannel/subnet.env", *backend.shown):
        show(host, *command.split())


def has_all_routes(host: Host) -> bool:
    """Whether the kernel knows the way to each other host; flannelpy logs a subnet a moment earlier."""
    routes = host.run("ip", "route").stdout
    return all(f"{other.subnet()} via " in routes for other in host.lab.hosts if other is not host)


def print_the_leases(lab: Lab) -> None:
    """Print what the hosts have written to etcd, for each other to read."""
    title("The leases in etcd")
    say("A lease says which host has which subnet. It lasts 24 hours and is renewed in time.\n")
    for lease in lab.leases():
        say(f"  {lease['key']}   {lease['value']}   {lease['ttl']} s left")


def print_the_containers(lab: Lab) -> list[Container]:
    """Return a container per host, as Docker makes it."""
    title("A container on every host")
    say("Docker would be started with --bip=$FLANNEL_SUBNET --mtu=$FLANNEL_MTU, after sourcing the subnet file.")
    say("Here plain ip commands do what it does with them. With real Docker: make demo RUNTIME=docker\n")
    containers = [host.add_container() for host in lab.hosts]
    for container in containers:
        env = container.host.subnet_env()
        bridge = f"docker0 {env['FLANNEL_SUBNET']} mtu {env['FLANNEL_MTU']}"
        say(f"  {container.host.name}   {bridge:<32} {container.name}   eth0 {container.address}")
    return containers


def print_the_pings(containers: Sequence[Pinger], backend: Backend, when: str = "") -> bool:
    """Return the proof.  Returns whether every ping was answered as it should be."""
    title(f"Every container pings every other{when}")
    replies: Matrix = {(a, b): ping(a, b) for a, b in itertools.permutations(containers, 2)}
    say(table(containers, replies))
    good = [reply for reply in replies.values() if reply and reply.ip_ttl == backend.ip_ttl]
    if len(good) < len(replies):
        say(f"\nThat went wrong: {len(good)} of {len(replies)} were answered with ttl={backend.ip_ttl}.")
        return False
    say(f"\nAll {len(good)} were answered, each with ttl={backend.ip_ttl}: packets set out with 64, and lose one")
    say(backend.why)
    return True


def ping(source: Pinger, target: Pinger) -> Reply | None:
    """Ping a few times.  Returns the fastest answer, nothing if one is missing."""
    output = source.ping_text(target.address, PINGS)
    replies = [Reply(float(ms), int(ip_ttl)) for ip_ttl, ms in re.findall(r"ttl=(\d+) time=([\d.]+) ms", output)]
    return min(replies) if len(replies) == PINGS else None


def table(containers: Sequence[Pinger], replies: Matrix) -> str:
    """Rows ping columns."""

    def cell(source: Pinger, target: Pinger) -> str:
        if source is target:
            return "-"
        reply = replies[source, target]
        return f"{reply.milliseconds:.2f} ms ttl={reply.ip_ttl}" if reply else "NO ANSWER"

    rows = [["", *(str(target.address) for target in containers)]]
    rows += [[source.name, *(cell(source, target) for target in containers)] for source in containers]
    return "\n" + "\n".join("  " + "".join(f"{text:<18}" for text in row).rstrip() for row in rows)


def print_the_dockers(dockers: Sequence[Docker]) -> list[DockerContainer]:
    """Return a dockerd on every host, with a container."""
    title(f"Docker {dockers[0].release.version} on every host, and a container")
    say("It gets the address and the MTU of its bridge from the subnet file. The image is a busybox.")
    say("As on fresh hosts nothing forwards yet: Docker switches it on, and drops what it does not know about.\n")
    for docker in dockers:
        docker.host.run("sh", "-c", "echo 0 >/proc/sys/net/ipv4/ip_forward")
    first = dockers[0]
    for line in START.splitlines():
        say(f"  {prompt(first)} {line}")
    say(f"  {prompt(first)} docker import image.tar {IMAGE}")
    say(f"  {prompt(first)} docker run --detach --name=c1 --restart=always {IMAGE} sleep 1000000\n")
    containers = []
    for docker in dockers:
        docker.start()
        docker.import_image()
        containers.append(docker.run_container("c1", "--restart=always"))
    for docker in dockers:
        show(docker, "docker", "exec", "c1", "ifconfig", "eth0")
    return containers


def print_the_restarts(docker: Docker, host: Host) -> None:
    """Docker starts again on one host, flannelpy on another one."""
    title("Restarts")
    say(f"  {docker.name}: dockerd is restarted, and its container with it")
    docker.stop()
    docker.start()
    wait_for(docker.runs_containers, 30, f"the container of {docker.name}")
    say(f"  {host.name}: flannelpy is restarted, and its container runs on")
    host.daemons[-1].stop()
    wait_connected(
        [host.start_daemon("-iface=eth1"), *(other.daemons[-1] for other in host.lab.hosts if other is not host)]
    )


def print_how_to_look_around(lab: Lab, dockers: Sequence[Docker]) -> None:
    """Print the commands that enter a lab that stays."""
    title("The lab stays. To look around, as root:")
    for host in lab.hosts:
        say(f"\n  {host.name}      nsenter -t {host.daemons[-1].pid} -n -m   # its flannelpy logs to {host.log_file}")
        for container in host.containers:
            say(f"  {container.name}   ip netns exec {container.netns} bash")
    for docker in dockers:
        say(f"\n  {docker.name}-c1   {docker.entrance} exec -it c1 sh")
    say("\nmake demo-down removes it.")


def print_the_checks(lab: Lab) -> bool:
    """Print what flannelpy check finds on each host.  Returns whether nothing is bad."""
    title("flannelpy check on each host")
    results = []
    for host in lab.hosts:
        flags = ("check", "-iface=eth1", f"-etcd-endpoints={lab.etcd.url}")
        say(f"  {prompt(host)} flannelpy {' '.join(flags)}")
        command = ("env", f"FLANNELD_HOST_ID={host.name}", sys.executable, "-P", "-m", "flannelpy", *flags)
        results.append(host.run(*command, check=False))
        say(indented(results[-1].stdout + results[-1].stderr) + "\n")
    return not any(result.returncode for result in results)


def print_what_went_wrong(lab: Lab, error: Exception) -> None:
    """Print the error, and the end of every log."""
    title(f"The demo failed: {error}")
    for host in lab.hosts:
        title(f"The last lines of {host.name}'s log")
        say(indented("\n".join(host.log().splitlines()[-LOG_TAIL:])))


def show(node: Node, *argv: str) -> None:
    """Run a command and print it as a user of that machine would see it."""
    say(f"  {prompt(node)} {' '.join(argv)}\n{indented(node.run(*argv).stdout)}\n")


def prompt(node: Node) -> str:
    """Return what stands before a command of that machine."""
    return bold(f"{node.name}$")


def indented(text: str) -> str:
    """Return the text, set off from the story."""
    return "\n".join(f"  {line}".rstrip() for line in text.rstrip().splitlines())


def title(text: str) -> None:
    """Print a headline."""
    say(f"\n{bold(text)}")


def bold(text: str) -> str:
    """Return the text, bold on a terminal."""
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() else text


def say(text: str) -> None:
    """Print a paragraph at once, also into a pipe."""
    print(text, flush=True)


def demo(backend: Backend, api: Api, release: str, keep: bool) -> int:
    """Build the lab, show the steps, and remove the lab, or check its hosts and keep it.  Returns the exit code.

    ``api``: of etcd, in whose store the leases are.  ``release``: of the real Docker to use; none if empty.
    """
    try:
        with ExitStack() as parts:
            lab = parts.enter_context(Lab(hosts=3, prefix=PREFIX, api=api))
            try:
                dockers = [parts.enter_context(Docker(host, unpack(release))) for host in lab.hosts if release]
                well = walk_through(lab, backend, api, dockers)
            except Exception as error:
                print_what_went_wrong(lab, error)
                return 1
            if keep:
                parts.pop_all()
                lab.keep()
                well &= print_the_checks(lab)
                print_how_to_look_around(lab, dockers)
            else:
                how = f"BACKEND={backend.name} API={api.value}{' RUNTIME=docker' if release else ''} KEEP=1"
                say(f"\nRemoving the lab. To keep it and look around: make demo {how}")
    except LabExistsError:
        say("A demo lab is here already: look around in it, or remove it with: make demo-down")
        return 1
    except KeyboardInterrupt:
        say("\nInterrupted. The lab is removed.")
        return 130
    return 0 if well else 1


def down() -> int:
    """Remove a lab that was kept.  Returns the exit code."""
    say("Removing the demo lab." if lab_exists(PREFIX) else "There is no demo lab.")
    remove_lab(PREFIX)
    remove_cgroups(f"{PREFIX}-*")
    return 0


def main(arguments: list[str]) -> int:
    """Return the exit code."""
    backends = [BACKENDS[each] for each in arguments if each in BACKENDS] or [UDP]
    apis = [APIS[each] for each in arguments if each in APIS] or [Api.V3]
    releases = [RUNTIMES[each] for each in arguments if each in RUNTIMES] or [""]
    others = [each for each in arguments if not any(each in choice for choice in CHOICES)]
    if others not in ([], ["--keep"], ["down"]):
        say(f"{USAGE}; not {' '.join(arguments)}")
        return 2
    if os.geteuid() != 0:
        say("The demo makes network namespaces, and that needs root: sudo make demo")
        return 1
    return down() if others == ["down"] else demo(backends[-1], apis[-1], releases[-1], keep=others == ["--keep"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
