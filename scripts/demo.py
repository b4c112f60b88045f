"""The walk-through: three hosts, a flannelpy on each, and containers that reach each other across them.

usage: demo.py [--keep | down]

Exit code 0: every container answered every other one, with ttl=60.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
from typing import TYPE_CHECKING, NamedTuple

from lab import CONFIG, ETCD_PREFIX, Lab, LabExistsError, lab_exists, remove_lab

if TYPE_CHECKING:
    from lab import Container, Host, Node

PREFIX = "flannelpy-demo"
EXPECTED_TTL = 60  # 64, less one in the kernel of either host, less one in either flannelpy
PINGS = 3
LOG_TAIL = 20

Matrix = dict[tuple["Container", "Container"], "Reply | None"]


class Reply(NamedTuple):
    """What one container heard from another."""

    milliseconds: float
    ip_ttl: int


def walk_through(lab: Lab) -> bool:
    """Tell the whole story.  Returns whether it ended well."""
    tell_the_rack(lab)
    tell_the_config(lab)
    tell_the_daemons(lab)
    for host in lab.hosts:
        tell_a_host(host)
    tell_the_leases(lab)
    containers = tell_the_containers(lab)
    return tell_the_pings(containers)


def tell_the_rack(lab: Lab) -> None:
    """Who is there."""
    title("Three hosts on one switch")
    say("Each is a network namespace with its own interfaces, routes and /run. etcd runs on the switch.")
    say("")
    say(f"  switch   172.17.8.1     etcd at {lab.etcd.url}")
    for host in lab.hosts:
        say(f"  {host.name}    {host.public_ip}   on eth1")


def tell_the_config(lab: Lab) -> None:
    """The one thing that a person configures."""
    title("The network, told to etcd once")
    say("Every host will get a subnet of it; a /24, as nothing else is asked for.")
    lab.put_config()
    say(f"\n  {ETCD_PREFIX}/config   {CONFIG}")


def tell_the_daemons(lab: Lab) -> None:
    """A flannelpy on every host."""
    title("A flannelpy on every host")
    say("It leases a subnet, opens the device flannel0, and learns the subnets of the others from etcd.\n")
    for host in lab.hosts:
        say(f"  {prompt(host)} flannelpy -iface=eth1 -etcd-endpoints={lab.etcd.url} &")
    lab.start_daemons("-iface=eth1")
    say(f"\nWhat {lab.hosts[0].name} has logged:\n")
    say(indented(lab.hosts[0].log()))


def tell_a_host(host: Host) -> None:
    """What has changed on one host."""
    title(f"{host.name}: its subnet, its device, its routes")
    show(host, "cat", "/run/flannel/subnet.env")
    show(host, "ip", "-4", "address", "show", "flannel0")
    show(host, "ip", "route")


def tell_the_leases(lab: Lab) -> None:
    """What the hosts have written to etcd, for each other to read."""
    title("The leases in etcd")
    say("A lease says which host has which subnet. It lasts 24 hours and is renewed in time.\n")
    for lease in lab.leases():
        say(f"  {lease['key']}   {lease['value']}   {lease['ttl']} s left")


def tell_the_containers(lab: Lab) -> list[Container]:
    """A container per host, as Docker makes it."""
    title("A container on every host")
    say("Docker would be started with --bip=$FLANNEL_SUBNET --mtu=$FLANNEL_MTU, after sourcing the subnet file.")
    say("Here plain ip commands do what it does with them.\n")
    containers = [host.add_container() for host in lab.hosts]
    for container in containers:
        env = container.host.subnet_env()
        bridge = f"docker0 {env['FLANNEL_SUBNET']} mtu {env['FLANNEL_MTU']}"
        say(f"  {container.host.name}   {bridge:<32} {container.name}   eth0 {container.address}")
    return containers


def tell_the_pings(containers: list[Container]) -> bool:
    """The proof.  Returns whether every ping was answered as it should be."""
    title("Every container pings every other")
    replies: Matrix = {(a, b): ping(a, b) for a, b in itertools.permutations(containers, 2)}
    say(table(containers, replies))
    good = [reply for reply in replies.values() if reply and reply.ip_ttl == EXPECTED_TTL]
    if len(good) < len(replies):
        say(f"\nThat went wrong: {len(good)} of {len(replies)} were answered with ttl={EXPECTED_TTL}.")
        return False
    say(f"\nAll {len(good)} were answered, each with ttl={EXPECTED_TTL}: a packet sets out with 64, and loses one")
    say("in the kernel of either host and one in either flannelpy.")
    return True


def ping(source: Container, target: Container) -> Reply | None:
    """Ping a few times.  Returns the fastest answer, nothing if one is missing."""
    output = source.run("ping", "-n", "-c", str(PINGS), "-i", "0.1", "-W", "2", str(target.address), check=False).stdout
    replies = [Reply(float(ms), int(ip_ttl)) for ip_ttl, ms in re.findall(r"ttl=(\d+) time=([\d.]+) ms", output)]
    return min(replies) if len(replies) == PINGS else None


def table(containers: list[Container], replies: Matrix) -> str:
    """Rows ping columns."""

    def cell(source: Container, target: Container) -> str:
        if source is target:
            return "-"
        reply = replies[source, target]
        return f"{reply.milliseconds:.2f} ms ttl={reply.ip_ttl}" if reply else "NO ANSWER"

    rows = [["", *(str(target.address) for target in containers)]]
    rows += [[source.name, *(cell(source, target) for target in containers)] for source in containers]
    return "\n" + "\n".join("  " + "".join(f"{text:<18}" for text in row).rstrip() for row in rows)


def tell_how_to_look_around(lab: Lab) -> None:
    """The commands that enter a lab that stays."""
    title("The lab stays. To look around, as root:")
    for host in lab.hosts:
        say(f"\n  {host.name}      nsenter -t {host.daemons[-1].pid} -n -m   # its flannelpy logs to {host.log_file}")
        for container in host.containers:
            say(f"  {container.name}   ip netns exec {container.netns} bash")
    say("\nmake demo-down removes it.")


def tell_what_went_wrong(lab: Lab, error: Exception) -> None:
    """The error, and the end of every log."""
    title(f"The demo failed: {error}")
    for host in lab.hosts:
        title(f"The last lines of {host.name}'s log")
        say(indented("\n".join(host.log().splitlines()[-LOG_TAIL:])))


def show(node: Node, *argv: str) -> None:
    """Run a command and print it as a user of that machine would see it."""
    say(f"  {prompt(node)} {' '.join(argv)}\n{indented(node.run(*argv).stdout)}\n")


def prompt(node: Node) -> str:
    """What stands before a command of that machine."""
    return bold(f"{node.name}$")


def indented(text: str) -> str:
    """The text, set off from the story."""
    return "\n".join(f"  {line}".rstrip() for line in text.rstrip().splitlines())


def title(text: str) -> None:
    """Print a headline."""
    say(f"\n{bold(text)}")


def bold(text: str) -> str:
    """The text, bold on a terminal."""
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() else text


def say(text: str) -> None:
    """Print a paragraph at once, also into a pipe."""
    print(text, flush=True)


def demo(keep: bool) -> int:
    """Build the lab, tell the story, remove the lab unless it is kept.  Returns the exit code."""
    try:
        with Lab(hosts=3, prefix=PREFIX) as lab:
            try:
                well = walk_through(lab)
            except Exception as error:
                tell_what_went_wrong(lab, error)
                return 1
            if keep:
                lab.keep()
                tell_how_to_look_around(lab)
            else:
                say("\nRemoving the lab. To keep it and look around: make demo KEEP=1")
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
    return 0


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    if arguments not in ([], ["--keep"], ["down"]):
        say("usage: demo.py [--keep | down]")
        return 2
    if os.geteuid() != 0:
        say("The demo makes network namespaces, and that needs root: sudo make demo")
        return 1
    return down() if arguments == ["down"] else demo(keep=arguments == ["--keep"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
