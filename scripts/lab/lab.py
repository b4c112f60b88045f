"""The lab as a whole: it builds the switch, etcd and the hosts, and removes them."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import sys
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlencode

from lab.etcd_server import EtcdServer
from lab.etcd_stores import Api
from lab.machines import ETCD_PORT, UNDERLAY, EtcdMember, Host, Machine
from lab.namespaces import NAMESPACES, Node, identity, ip_batch, kill_group, kill_inside, undisturbed, wait_for

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

    from lab.daemon import Daemon
    from lab.etcd_stores import Key

_SWITCH_MAC = "02:00:00:00:00:01"
FIRST_ETCD = IPv4Address("172.17.8.11")
ETCD_PREFIX = "/coreos.com/network"
CONFIG = '{"Network":"11.0.0.0/16"}'

_serial = itertools.count(1)


class LabExistsError(Exception):
    """A lab of this prefix is there already: kept on purpose, or left by a run that was killed."""


class Lab:
    """A switch with etcd, and hosts.  A context manager: after it nothing of the lab is left, even after an exception.

    ``etcd`` runs on the switch, or is the first of ``etcd_members`` if there are to be any.  ``api`` is the API whose
    store has the config and the leases; etcd serves the v2 API only if it is that one.

    From the first lab on, SIGTERM and SIGHUP end this process the way Ctrl-C does, so that they clean up too.
    """

    def __init__(
        self,
        hosts: int = 3,
        *,
        mtu: int = 1500,
        prefix: str | None = None,
        etcd_members: int = 0,
        api: Api = Api.V2,
    ) -> None:
        self.prefix = prefix or f"flannelpy-{os.getpid()}-{next(_serial)}"
        self.dir = _directory(self.prefix)
        self.mtu = mtu
        self.processes: list[subprocess.Popen[str]] = []
        self.switch = Node(self, "switch")
        self.hosts = [Host(self, number) for number in range(1, hosts + 1)]
        machines = [Machine(self, f"etcd{number + 1}", FIRST_ETCD + number) for number in range(etcd_members)]
        peers = {machine.name: f"http://{machine.public_ip}:2380" for machine in machines}
        self.etcd_members = [EtcdMember(machine, peers, api) for machine in machines]
        self._etcds: Sequence[EtcdServer] = self.etcd_members or [
            EtcdServer(self.dir / "etcd", host=str(UNDERLAY.ip), port=ETCD_PORT, netns=self.switch.netns, api=api)
        ]
        self.etcd = self._etcds[0]
        self._kept = False

    def __enter__(self) -> Self:
        _end_as_ctrl_c_does()
        try:
            self.dir.mkdir()  # the process that creates it owns the prefix
        except FileExistsError:
            raise LabExistsError(f"{self.dir} exists") from None
        try:
            self._build()
        except BaseException:
            self.remove()
            raise
        return self

    def _build(self) -> None:
        self.switch.create()
        # Without a MAC of its own a bridge takes the lowest of its ports, and hosts that know another one lose it.
        self.switch.configure(
            f"link add br0 address {_SWITCH_MAC} mtu {self.mtu} type bridge",
            f"address add {UNDERLAY} dev br0",
            "link set br0 up",
        )
        # Where br_netfilter is loaded, packets that a switch passes on would go through this namespace's iptables.
        self.switch.run("sh", "-c", "f=/proc/sys/net/bridge/bridge-nf-call-iptables; ! [ -e $f ] || echo 0 > $f")
        for member in self.etcd_members:
            member.machine.create()
        for etcd in self._etcds:
            etcd.launch()
        for host in self.hosts:
            host.create()
        for etcd in self._etcds:
            etcd.wait_until_ready()

    @property
    def etcd_endpoints(self) -> str:
        """The value of -etcd-endpoints that names every member."""
        return ",".join(etcd.url for etcd in self._etcds)

    def start_daemons(self, *flags: str) -> list[Daemon]:
        """Start flannelpy on every host, and return when each is ready and knows the subnets of all others."""
        daemons = [host.start_daemon(*flags) for host in self.hosts]
        wait_connected(daemons)
        return daemons

    def etcd_request(self, method: str, key: str, **form: str) -> dict[str, Any]:
        """Return the answer of etcd's v2 API, an error included.  The request is sent from the switch."""
        script = (
            "import http.client, sys\n"
            "method, address, path, form = sys.argv[1:]\n"
            "connection = http.client.HTTPConnection(address, timeout=10)\n"
            "connection.request(method, path, form, {'Content-Type': 'application/x-www-form-urlencoded'})\n"
            "print(connection.getresponse().read().decode())"
        )
        address = self.etcd.url.removeprefix("http://")
        argv = [sys.executable, "-I", "-S", "-c", script, method, address, f"/v2/keys{key}", urlencode(form)]
        answer: dict[str, Any] = json.loads(self.switch.run(*argv).stdout)
        return answer

    def put_config(self, config: str = CONFIG) -> None:
        """Store the network config in etcd."""
        self.etcd.put(f"{ETCD_PREFIX}/config", config)

    def leases(self) -> list[dict[str, Any]]:
        """Return the leases as dictionaries with the keys of etcd's v2 API; reservations have no ``ttl``."""
        return [_as_in_v2(lease) for lease in self.etcd.list(f"{ETCD_PREFIX}/subnets")]

    def keep(self) -> None:
        """Leave the lab standing when the context ends; ``remove_lab`` takes it down."""
        self._kept = True

    def __exit__(self, *_: object) -> None:
        if not self._kept:
            self.remove()

    def remove(self) -> None:
        """Take the lab down; a second call does nothing."""
        with undisturbed():
            for etcd in self._etcds:
                etcd.kill()
            for process in self.processes:
                kill_group(process)
                with process:  # closes its pipes
                    process.wait()
            remove_lab(self.prefix)
            for host in self.hosts:
                for daemon in host.daemons:
                    daemon.close()


def wait_connected(daemons: Sequence[Daemon]) -> None:
    """Return when each is ready, knows the subnets of all others, and uses its datapath.

    Raises as Daemon.wait_for_log does.
    """
    for daemon in daemons:
        daemon.wait_ready()
    subnets = {daemon: daemon.host.subnet() for daemon in daemons}
    for daemon, other in itertools.permutations(daemons, 2):
        daemon.wait_for_peer(subnets[other])
    for daemon in daemons:
        daemon.wait_for_datapath()


def lab_exists(prefix: str) -> bool:
    """Whether a lab of this prefix stands, or remains of one."""
    return _directory(prefix).exists() or bool(_namespaces(prefix))


def remove_lab(prefix: str) -> None:
    """End every process in the lab's namespaces, delete the namespaces and the directory, if there are any."""
    with undisturbed():
        names = _namespaces(prefix)
        inside = {identity(NAMESPACES / name) for name in names}
        wait_for(lambda: not kill_inside(inside), 10, f"the processes of {prefix} to end")
        ip_batch([f"netns delete {name}" for name in names])
        shutil.rmtree(_directory(prefix), ignore_errors=True)


def _as_in_v2(lease: Key) -> dict[str, Any]:
    fields = {"key": lease.key, "value": lease.value, "createdIndex": lease.created, "modifiedIndex": lease.version}
    return fields if lease.ttl is None else fields | {"ttl": lease.ttl}


def _directory(prefix: str) -> Path:
    return Path("/run") / prefix


def _namespaces(prefix: str) -> list[str]:
    pattern = re.compile(rf"{re.escape(prefix)}-(switch|etcd\d+|host\d+(-c\d+)?)")
    return [path.name for path in NAMESPACES.glob("*") if pattern.fullmatch(path.name)]


def _end_as_ctrl_c_does() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            with suppress(ValueError):  # only the main thread may do this
                signal.signal(number, signal.default_int_handler)
