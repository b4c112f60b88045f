"""A random walk of host events: an operator, a DHCP client or a network manager changes a host under a running daemon.

One host of a lab walks, or several at a time, each by itself; the last one stays as it is, the peer of all.  After each
event one of three has to be true of a walker, soon and for a while:

- it is ready, and packets flow both ways between its container and the peer's, with the right sources;
- it is not ready, and its status or its log names the cause;
- its daemon has ended with exit code 1 and an error in the last line of the log; then it is started again, as systemd
  would, and keeps its subnet.

When all events are undone, the host has to be ready again.
"""

from __future__ import annotations

import ctypes
import os
import random
import re
import select
import socket
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import NamedTuple

from faults.backends import HOST_GW, UDP, VXLAN, Backend
from lab import NAMESPACES, Container, Daemon, Host, Lab, wait_connected, wait_for
from support.hosts import subnet_in_file

BACKENDS = (UDP, VXLAN, HOST_GW)
#: Walkers of one lab.
WALKERS = 3

_GATEWAY = "172.17.8.1"
# The second NIC's network, which the switch routes to.
_OTHER_GATEWAY, _OTHER_NETWORK = "172.18.8.1", "172.18.8"
_FIRST_PORT = 7001
# Another address ends a daemon after 15 s, and a loaded machine takes its time.
_SETTLE_SECONDS, _CALM_SECONDS = 30.0, 1.0
# Once in a while a walker waits for that, at most once in so many steps.
_LINGER_SECONDS, _LINGER_STEPS = 17.0, 10
_RECOVERY_SECONDS = 60.0
_FLOW_SECONDS = 0.3
_CLONE_NEWNET = 0x40000000
_ETH_P_IP, _PACKET_HOST = 0x0800, 0
_NONCE_BYTES = 16


class Event(NamedTuple):
    """Shell commands that change a host, and those that change it back; without any, the daemon repairs it.

    ``{nic}`` is the name of the external interface, ``{own}`` the daemon's device; ``switch:`` stands before what
    happens at the other end of the cable.
    ``nic``, ``holder``: their names once it has happened, if it changes them.  ``keeps_address``: whether the external
    interface still has its own address, by which the switch leads to one on lo.
    """

    name: str
    do: Sequence[str]
    undo: Sequence[str] = ()
    nic: str = ""
    holder: str = ""
    keeps_address: bool = False


_ADD, _DELETE = "ip address add {address}/24 dev eth1", "ip address delete {address}/24 dev eth1"
_ADD_OTHER, _DELETE_OTHER = "ip address add {other}/24 dev eth1", "ip address delete {other}/24 dev eth1"
_LIFETIME = "ip address change {address}/24 dev eth1 valid_lft forever preferred_lft"

#: Of each group one event at a time.
UNDERLAY = (
    Event("link down", ["ip link set eth1 down"], ["ip link set eth1 up"], keeps_address=True),
    Event("unplugged", ["switch: ip link set {host} down"], ["switch: ip link set {host} up"], keeps_address=True),
    Event(
        "renamed",
        ["ip link set eth1 down", "ip link set eth1 name lan0", "ip link set lan0 up"],
        ["ip link set lan0 down", "ip link set lan0 name eth1", "ip link set eth1 up"],
        nic="lan0",
        holder="lan0",
    ),
    Event(
        "enslaved",
        [
            "ip link add br9 type bridge",
            "ip link set br9 up",
            _DELETE,
            "ip link set eth1 master br9",
            "ip address add {address}/24 dev br9",
        ],
        ["ip link delete br9", _ADD],
        holder="br9",
    ),
    Event(
        "enslaved, and the address stays",
        ["ip link add br9 type bridge", "ip link set br9 up", "ip link set eth1 master br9"],
        ["ip link delete br9"],
        keeps_address=True,
    ),
    # As from DHCP.
    Event(
        "address with another prefix",
        [_DELETE, "ip address add {address}/32 dev eth1"],
        ["ip address delete {address}/32 dev eth1", _ADD],
        keeps_address=True,
    ),
    Event(
        "link route deleted",
        ["ip route delete 172.17.8.0/24 dev eth1"],
        ["ip route replace 172.17.8.0/24 dev eth1 proto kernel scope link src {address} || true"],
        keeps_address=True,
    ),
    Event("address replaced", [_DELETE, _ADD_OTHER], [_DELETE_OTHER, _ADD]),
    Event("address removed", [_DELETE], [_ADD]),
    Event("second address", [_ADD_OTHER], [_DELETE_OTHER]),
    # The kernel removes secondary addresses with the first one.
    Event("address no longer first", [_DELETE, _ADD_OTHER, _ADD], [_DELETE_OTHER, f"{_ADD} || true"]),
    Event("address deprecated", [f"{_LIFETIME} 0"], [f"{_LIFETIME} forever"]),
    Event(
        "address moved",
        [_DELETE, "ip address add {address}/24 dev eth2"],
        ["ip address delete {address}/24 dev eth2", _ADD],
        holder="eth2",
    ),
    Event(
        "NIC replaced by another one of its name",
        [
            "switch: ip link delete {host}",
            "switch: ip link add {host} type veth peer name eth1 netns {netns}",
            "switch: ip link set {host} master br0 up",
            "ip link set eth1 up",
            _ADD,
        ],
    ),
)
ROUTE = (Event("default route moved", []), Event("default route removed", []))
MTU = (Event("MTU changed", ["ip link set {nic} mtu 1400"], ["ip link set {nic} mtu 1500"]),)


def _sysctl(name: str, wrong: int) -> tuple[Event, ...]:
    """The device may be away, and the name of its setting with it."""
    setting = f"sysctl -q -w net.ipv4.{name}={{value}} 2>/dev/null || true"
    do, undo = (setting.replace("{value}", str(value)) for value in (wrong, 1 - wrong))
    return (Event(f"{name}={wrong}", [do], [undo]),)


SYSCTLS = (
    _sysctl("ip_forward", 0),
    _sysctl("conf.docker0.forwarding", 0),
    _sysctl("conf.{own}.forwarding", 0),
    _sysctl("conf.{own}.rp_filter", 1),
)
# Where the second NIC has the public IP, answers come in by another one than the way to the peer: those are dropped.
REVERSE_PATH = _sysctl("conf.all.rp_filter", 1)
OWN = tuple(
    Event(command, [f"{command} 2>/dev/null || true"])
    for command in (
        "ip link set {own} down",
        "ip address flush dev {own}",
        "ip link delete {own}",
        "ip link set {own} mtu 1300",
        "sysctl -q -w net.ipv4.conf.{own}.accept_local=0",
    )
)
OWN_ROUTES = (Event("our routes removed", ["ip route flush proto 85"]),)


class Broken(AssertionError):
    """What must never be."""


class Wire:
    """Datagrams both ways between two containers, and what the second one's host sees of them on the wire."""

    def __init__(self, one: Container, other: Container, port: int) -> None:
        self._ends = [_udp_socket(one, port), _udp_socket(other, port)]
        self._addresses = [(str(end.address), port) for end in (one, other)]
        self._wire = _socket_in(other.host.netns, socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP))
        self._wire.bind(("eth1", _ETH_P_IP))
        self._wire.setblocking(False)

    def flows(self, sources: Collection[str]) -> bool:
        """Whether a datagram arrives each way.  Raises Broken if its source, inside or outside, is a wrong one.

        ``sources``: those that the first container's datagrams may have on the wire.
        """
        nonces = [os.urandom(_NONCE_BYTES) for _ in self._ends]
        for _ in self._packets():
            pass
        came = [self._carry(0, 1, nonces[0]), self._carry(1, 0, nonces[1])]
        for packet in self._packets():
            source = socket.inet_ntoa(packet[12:16])
            if nonces[0] in packet and source not in sources:
                raise Broken(f"a datagram came from {source} instead of {', '.join(sources)}")
        return all(came)

    def _carry(self, sender: int, receiver: int, nonce: bytes) -> bool:
        try:
            self._ends[sender].sendto(nonce, self._addresses[receiver])
        except OSError:
            return False
        end = time.monotonic() + _FLOW_SECONDS
        while select.select([self._ends[receiver]], [], [], max(0, end - time.monotonic()))[0]:
            data, source = self._ends[receiver].recvfrom(9999)
            if data == nonce:
                if source != self._addresses[sender]:
                    raise Broken(f"a packet came from {source} instead of {self._addresses[sender]}")
                return True
        return False

    def _packets(self) -> Iterator[bytes]:
        """Those that have come in since the last call."""
        with suppress(BlockingIOError):
            while True:
                packet, (_, _, kind, *_) = self._wire.recvfrom(65535)
                if kind == _PACKET_HOST:
                    yield packet

    def close(self) -> None:
        """Leave the namespaces alone."""
        for sock in (*self._ends, self._wire):
            sock.close()


class Walk:
    """One host's walk, which the seed determines but for what daemon and kernel do."""

    def __init__(self, host: Host, peer: Container, backend: Backend, seed: int) -> None:
        self._host, self._peer, self._backend = host, peer, backend
        self._rng = random.Random(f"{seed} {backend} {host.name}")
        number = int(str(host.public_ip).rpartition(".")[2])
        self._names = {
            "address": str(host.public_ip),
            "other": f"172.17.8.{number + 50}",
            "host": host.name,
            "netns": host.netns,
        }
        # host-gw needs all hosts on one link, so its interface is always named.
        # With the public IP on lo, eth1 is only the way out.
        self._names["loopback"] = f"10.255.0.{number}"
        choices = [["-iface=eth1"], [], ["-iface=eth1", f"-public-ip={self._names['loopback']}"]]
        self._flags = choices[0] if backend is HOST_GW else self._rng.choice(choices)
        self._has_public_ip_on_lo = self._flags is choices[2]
        self._nic = self._holder = "eth1"
        self._active: dict[str, Event] = {}
        self._last_public_ip = self._names["address"]
        self._steps = self._next_linger = 0
        self._story: list[str] = []
        self._began = time.monotonic()

    # The way

    def begin(self) -> Daemon:
        """The second NIC comes, and the daemon starts."""
        host, number = self._host, self._names["address"].rpartition(".")[2]
        host.lab.switch.configure(
            f"link add {host.name}b type veth peer name eth2 netns {host.netns}", f"link set {host.name}b master br0 up"
        )
        # Of its network only the gateway is on its link: the other hosts are reached by a default route or not at all.
        host.configure(f"address add {_OTHER_NETWORK}.{number}/32 dev eth2", "link set eth2 up")
        host.configure(f"route add {_OTHER_GATEWAY} dev eth2", f"address add {self._names['loopback']}/32 dev lo")
        host.lab.switch.configure(f"route add {self._names['loopback']} via {self._names['address']}")
        # Each NIC answers for its own addresses, as two in one segment need it.
        self._sh("sysctl -q -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2")
        self._set_route()
        self._daemon = host.start_daemon(*self._flags)
        return self._daemon

    def run(self, may_continue: Callable[[int], bool]) -> None:
        """Run events while ``may_continue`` allows the number of steps; then the host is restored, and ready.

        Raises Broken, TimeoutError.
        """
        self._subnet = self._host.subnet()
        try:
            with ExitStack() as opened:
                self._wire = Wire(self._host.add_container(), self._peer, _FIRST_PORT + int(self._host.name[4:]))
                opened.callback(self._wire.close)
                self._settle()
                while may_continue(self._steps):
                    self._steps += 1
                    self._step()
                self._recover()
        except Exception as error:
            error.add_note("\n".join([*self._story, *self._daemon.log().splitlines()[-40:]]))
            raise

    def _step(self) -> None:
        group, events = self._rng.choice(self._groups())
        event, undoes, lingers = self._rng.choice(events), self._rng.random() < 0.4, self._rng.random() < 0.5
        if self._is_on_second_nic() and not {"underlay", "route"} & set(self._active):
            self._restart()
        elif undoes and self._active:
            self._undo(self._rng.choice(list(self._active)))
        elif group in self._active:
            self._undo(group)
        elif group != "underlay" or not self._is_on_second_nic():
            self._do(group, event)
        state = self._settle()
        if lingers and "underlay" in self._active and state != "ready" and self._steps >= self._next_linger:
            self._next_linger = self._steps + _LINGER_STEPS
            wait_for_end(self._daemon, _LINGER_SECONDS)
            self._settle()

    def _groups(self) -> list[tuple[str, Sequence[Event]]]:
        """The underlay more often than all else."""
        own = OWN if self._backend.device else OWN_ROUTES
        underlay = UNDERLAY if not self._has_public_ip_on_lo else [one for one in UNDERLAY if one.keeps_address]
        groups = [("underlay", underlay)] * 5 + [("route", ROUTE), ("mtu", MTU), ("own", own)]
        sysctls = (*SYSCTLS, REVERSE_PATH) if self._flags == ["-iface=eth1"] else SYSCTLS
        return [*groups, *((events[0].name, events) for events in sysctls)]

    def _do(self, group: str, event: Event) -> None:
        self._tell(self._format(event.name))
        if event.undo or group == "route":
            self._active[group] = event
        for command in event.do:
            self._change(command)
        self._nic, self._holder = event.nic or self._nic, event.holder or self._holder
        self._set_route()

    def _undo(self, group: str) -> None:
        event = self._active.pop(group)
        self._tell(f"no longer {self._format(event.name)}")
        for command in event.undo:
            self._change(command)
        if group == "underlay":
            self._nic = self._holder = "eth1"
        self._set_route()

    def _recover(self) -> None:
        for group in list(self._active):
            self._undo(group)
        end = time.monotonic() + _RECOVERY_SECONDS
        while (state := self._settle()) != "ready":
            if time.monotonic() > end:
                raise Broken(f"everything is restored, and the host is {state}")

    # What has to be true

    def _settle(self) -> str:
        """Return the state once it was the same for a while.  Raises TimeoutError if it makes no sense for too long."""
        if self._daemon.process.poll() is not None:
            self._start_again()
        end = time.monotonic() + _SETTLE_SECONDS
        state, since = "", time.monotonic()
        while not state or time.monotonic() - since < _CALM_SECONDS:
            now = self._state()
            if now == "ended":
                state = now
                break
            if now.partition(":")[0] != state.partition(":")[0]:
                since = time.monotonic()
            state = now
            if time.monotonic() > end:
                raise TimeoutError(f"waited {_SETTLE_SECONDS:g} s for {self._host.name} to be in one of the states")
            time.sleep(0.1)
        self._tell(f"  {state}")
        return state

    def _state(self) -> str:
        """Ready, not ready for a cause, or ended; empty if it is none of these.  Raises Broken."""
        daemon = self._daemon
        if (code := daemon.process.poll()) is not None:
            last = daemon.log().splitlines()[-1]
            if code != 1 or not last.startswith("E"):
                raise Broken(f"exit code {code}, and the last line is {last}")
            return "ended"
        is_ready = (self._host.run_dir / "flannel/ready").exists()
        flows = self._wire.flows(self._sources())
        if is_ready:
            return "ready" if flows and self._is_subnet_kept() else ""
        status = next((line for line in reversed(daemon.notified) if line.startswith("STATUS=")), "")
        if " not ready: " in status:
            return "not ready: " + status.partition(" not ready: ")[2].partition(", next hops")[0]
        error = re.findall(r"^E.*$", daemon.log(), re.MULTILINE)
        return f"not ready: {error[-1]}" if "aiting for" in status and error else ""

    def _is_subnet_kept(self) -> bool:
        if subnet_in_file(self._host) != self._subnet:
            raise Broken(f"the subnet is {subnet_in_file(self._host)} instead of {self._subnet}")
        return True

    def _sources(self) -> Collection[str]:
        """Of packets on the wire, as the peer should see them.

        Until a new run is ready, the kernel may still send what the last run set up.
        """
        if not self._backend.device:
            return [str(self._host.containers[0].address)]
        now = self._public_ip()
        if "READY=1" in self._daemon.notified:
            self._last_public_ip = now
        return {self._last_public_ip, now}

    def _public_ip(self) -> str:
        found = re.findall(r"Using (\S+) as external endpoint", self._daemon.log())
        return found[-1] if found else self._names["address"]

    # Helpers

    def _is_on_second_nic(self) -> bool:
        """Then the peer is in the first one's network, whose link is not the daemon's business."""
        return self._public_ip().startswith(_OTHER_NETWORK)

    def _restart(self) -> None:
        """An operator has the daemon use the first NIC again."""
        self._tell("restart")
        assert self._daemon.stop() == 0
        self._daemon = self._host.start_daemon(*self._flags)

    def _start_again(self) -> None:
        self._daemon.close()
        self._daemon = self._host.start_daemon(*self._flags)

    def _set_route(self) -> None:
        """A DHCP client or a network manager puts the default route where the address is."""
        event = self._active.get("route")
        if event is None:
            self._sh(f"ip route replace default via {_GATEWAY} dev {self._holder} 2>/dev/null || true")
        elif event is ROUTE[0]:
            self._sh(f"ip route replace default via {_OTHER_GATEWAY} dev eth2")
        else:
            self._sh("ip route delete default 2>/dev/null || true")

    def _format(self, command: str) -> str:
        own = self._backend.device or self._nic
        if "sysctl" in command:  # which takes a slash for a dot
            own = own.replace(".", "/")
        return command.format(**self._names, nic=self._nic, own=own)

    def _change(self, command: str) -> None:
        text = self._format(command)
        if text.startswith("switch: "):
            self._host.lab.switch.run(*text.split()[1:])
        else:
            self._sh(text)

    def _sh(self, command: str) -> None:
        self._host.run("sh", "-c", command)

    def _tell(self, text: str) -> None:
        self._story.append(f"{time.monotonic() - self._began:6.1f} s {self._backend} {self._host.name} {text}")


def wait_for_end(daemon: Daemon, seconds: float) -> None:
    """Return when it has ended, or after so many seconds."""
    with suppress(TimeoutError):
        wait_for(lambda: daemon.process.poll() is not None, seconds, "the end")


def walk(lab: Lab, backend: Backend, seed: int, may_continue: Callable[[int], bool]) -> list[str]:
    """All hosts but the last one walk at the same time; what has happened to them.  Raises as Walk.run does."""
    lab.put_config(backend.config())
    lab.switch.configure(f"address add {_OTHER_GATEWAY}/24 dev br0")
    *hosts, peer = lab.hosts
    peer.configure(f"route add default via {_GATEWAY}")
    stays = peer.start_daemon("-iface=eth1")
    stays.wait_ready(30)
    container = peer.add_container()
    walks = [Walk(host, container, backend, seed) for host in hosts]
    daemons = [each.begin() for each in walks]
    for daemon in daemons:
        daemon.wait_ready(30)
    wait_connected([stays, *daemons])
    with ThreadPoolExecutor(len(walks)) as threads:
        futures = [threads.submit(each.run, may_continue) for each in walks]
    for future in futures:
        future.result()
    assert stays.process.poll() is None, stays.log()
    logs = [host.log() for host in lab.hosts]
    assert not any("Traceback" in log or "Unexpected error" in log for log in logs), "\n".join(logs)
    return [line for each in walks for line in each._story]


def _udp_socket(container: Container, port: int) -> socket.socket:
    sock = _socket_in(container.netns, socket.AF_INET, socket.SOCK_DGRAM, 0)
    sock.bind((str(container.address), port))
    return sock


def _socket_in(netns: str, family: int, kind: int, protocol: int) -> socket.socket:
    """A socket of another network namespace: a thread enters that one, makes it and ends."""

    def make() -> socket.socket:
        with (NAMESPACES / netns).open() as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"cannot enter {netns}")
        return socket.socket(family, kind, protocol)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(make).result()
