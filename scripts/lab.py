r"""A small data centre on one machine: a switch with etcd and hosts that run flannelpy, all in network namespaces.

          switch   br0 172.17.8.1/24, etcd on port 2379
         /   |   \
      eth1  eth1  eth1       172.17.8.101, .102, .103, …
    host1  host2  host3      each with its own /run, so each has its own /run/flannel/subnet.env and host ID
       |     |     |
    docker0  …     …         the address and MTU that the host's subnet.env tells
       |
      eth0                   container host1-c1, the subnet's .2

With ``etcd_members`` etcd is a cluster of machines etcd1, etcd2, … (172.17.8.11, .12, …) on the switch instead.

A lab is named by its prefix: its namespaces are ``<prefix>-switch``, ``<prefix>-host1``, ``<prefix>-host1-c1``, its
directory is ``/run/<prefix>``, and a host's /run is ``/run/<prefix>/host1/run`` seen from outside.  Nothing else of it
exists outside its namespaces, so the prefix is all that is needed to remove it, and labs never meet.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlencode

from etcd_server import EtcdServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

UNDERLAY = IPv4Interface("172.17.8.1/24")
FIRST_HOST = IPv4Address("172.17.8.101")
FIRST_ETCD = IPv4Address("172.17.8.11")
ETCD_PORT = 2379
# A new leader within a second or so, where the defaults take longer; a lost member may be replaced at any time.
MEMBER_ARGUMENTS = ("--heartbeat-interval=50", "--election-timeout=500", "--strict-reconfig-check=false")
ETCD_PREFIX = "/coreos.com/network"
CONFIG = '{"Network":"11.0.0.0/16"}'
NAMESPACES = Path("/run/netns")
# From so many on, the daemon may log peers in sum only.
_LOGGED_PEERS = 20
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Stands before a command that SIGINT and SIGHUP must end.  A shell has its background jobs ignore SIGINT, nohup has
#: its command ignore SIGHUP, and their children do, too.
INTERRUPTIBLE = ("env", "--default-signal=INT,HUP")

T = TypeVar("T")
_serial = itertools.count(1)


class LabExistsError(Exception):
    """A lab of this prefix is there already: kept on purpose, or left by a run that was killed."""


class CommandError(subprocess.CalledProcessError):
    """A command failed; unlike its parent it says what the command said."""

    def __str__(self) -> str:
        return f"{super().__str__()}\n{self.stdout}{self.stderr}".rstrip()


def wait_for(condition: Callable[[], T | None], deadline: float, what: str, *, pause: float = 0.01) -> T:
    """The condition's first true value.  Raises TimeoutError when there is none within ``deadline`` seconds."""
    end = time.monotonic() + deadline
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {deadline:g} s for {what}")
        time.sleep(pause)
    return value


class Node:
    """One namespace of a lab: a place where commands run."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = name
        self.netns = f"{lab.prefix}-{name}"
        self.dir = lab.dir / name

    def enter(self, *argv: str) -> list[str]:
        """The command line that runs ``argv`` in here; the process stays the same, so its pid is the command's."""
        return ["ip", "netns", "exec", self.netns, *INTERRUPTIBLE, *argv]

    def popen(
        self,
        *argv: str,
        stdin: int = subprocess.DEVNULL,
        stdout: int | IO[str] = subprocess.PIPE,
        stderr: int | IO[str] = subprocess.PIPE,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start a command in a process group of its own; what still runs when the lab ends is killed then."""
        process = subprocess.Popen(
            self.enter(*argv), stdin=stdin, stdout=stdout, stderr=stderr, env=env, text=True, start_new_session=True
        )
        self.lab.processes.append(process)
        return process

    def run(
        self,
        *argv: str,
        check: bool = True,
        input: str | None = None,  # noqa: A002  # as in subprocess.run
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end.  Raises CommandError (if ``check``), subprocess.TimeoutExpired."""
        process = self.popen(*argv, stdin=subprocess.DEVNULL if input is None else subprocess.PIPE)
        with process:
            try:
                stdout, stderr = process.communicate(input, timeout)
            finally:
                _kill_group(process)
        self.lab.processes.remove(process)
        if check and process.returncode:
            raise CommandError(process.returncode, shlex.join(argv), stdout, stderr)
        return subprocess.CompletedProcess(argv, process.returncode, stdout, stderr)

    def configure(self, *commands: str) -> None:
        """Run ``ip`` commands in here, in one process."""
        _ip_batch(commands, "-n", self.netns)

    def create(self) -> None:
        """Make the namespace with its loopback up, forwarding as a router does."""
        self.dir.mkdir(exist_ok=True)
        _ip_batch([f"netns add {self.netns}"])
        self.configure("link set lo up")
        self.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")


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
        """What ping prints, a line for each answer."""
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
        """Cut its link; connections are half-open from then on, as nobody is told."""
        self.lab.switch.configure(f"link set {self.name} down")

    def plug_in(self) -> None:
        """Mend its link."""
        self.lab.switch.configure(f"link set {self.name} up")


class EtcdMember(EtcdServer):
    """An etcd on a machine of its own, which can be cut off."""

    def __init__(self, machine: Machine, peers: Mapping[str, str]) -> None:
        super().__init__(
            machine.dir,
            host=str(machine.public_ip),
            port=ETCD_PORT,
            netns=machine.netns,
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
        all hosts of the lab have this machine's id.
        """
        daemon = Daemon(self, flags, env or {}, self.lab.etcd_endpoints if endpoints is None else endpoints, python)
        self.daemons.append(daemon)
        return daemon

    def kill_daemons(self) -> None:
        """End those that still run, without a chance to clean up."""
        for daemon in self.daemons:
            if daemon.process.poll() is None:
                daemon.kill()

    def log(self) -> str:
        """What all daemons of this host have logged."""
        return self.log_file.read_text() if self.log_file.exists() else ""

    def subnet_env(self) -> dict[str, str]:
        """The FLANNEL_* variables that a shell gets from sourcing the subnet file."""
        script = "set -a; . /run/flannel/subnet.env; env"
        lines = self.run("env", "-i", "sh", "-c", script).stdout.splitlines()
        return dict(line.split("=", 1) for line in lines if line.startswith("FLANNEL_"))

    def subnet(self) -> IPv4Network:
        """The subnet that this host has leased."""
        return IPv4Interface(self.subnet_env()["FLANNEL_SUBNET"]).network

    def add_container(self) -> Container:
        """Start a container the way Docker would, with the bridge address and MTU that the subnet file tells."""
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


class Daemon:
    """One run of flannelpy on a host.  The lab is its systemd: it listens on NOTIFY_SOCKET."""

    def __init__(self, host: Host, flags: Sequence[str], env: Mapping[str, str], endpoints: str, python: str) -> None:
        self.host = host
        self._log_start = host.log_file.stat().st_size if host.log_file.exists() else 0
        self.notified: list[str] = []  # the lines told to systemd so far, such as READY=1
        self._notify = _listen(host.run_dir / "notify", self.notified)
        argv = [python, "-P", "-m", "flannelpy"]  # -P: what that Python has installed, not what lies where we are
        if endpoints:
            argv.append(f"-etcd-endpoints={endpoints}")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FLANNELD_")}
        with host.log_file.open("a") as log:
            self.process = host.popen(
                *argv,
                *flags,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**inherited, "NOTIFY_SOCKET": "/run/notify", "FLANNELD_HOST_ID": host.name, **env},
            )
        self.pid = self.process.pid

    def log(self) -> str:
        """What this run has logged so far."""
        return self.host.log_file.read_bytes()[self._log_start :].decode(errors="replace")

    def wait_for_log(self, pattern: str, deadline: float = 10) -> re.Match[str]:
        """The first match in the log.  Raises TimeoutError, RuntimeError when the daemon ends without it."""
        return self._wait_for(lambda: re.search(pattern, self.log(), re.MULTILINE), deadline, f"{pattern!r} in the log")

    def wait_for_peer(self, subnet: IPv4Network, deadline: float = 10) -> None:
        """Return when the daemon leads packets to a peer's subnet.  Raises as ``wait_for_log`` does.

        Of very many peers the log names some only: then the peer's tunnel address answers.
        """
        line = re.compile(rf"Subnet added: {re.escape(str(subnet))}( via \S+)?$", re.MULTILINE)

        def is_known() -> bool:
            log = self.log()
            return bool(line.search(log)) or (log.count("Subnet added: ") >= _LOGGED_PEERS and self._reaches(subnet))

        self._wait_for(is_known, deadline, f"the peer {subnet}")

    def _reaches(self, subnet: IPv4Network) -> bool:
        return not self.host.run("ping", "-c1", "-W1", str(subnet.network_address), check=False).returncode

    def wait_ready(self, deadline: float = 10) -> None:
        """Return when the subnet file is written and the data path runs.  Raises as wait_for_log does."""
        self._wait_for(lambda: "READY=1" in self.notified, deadline, "READY=1")

    def _wait_for(self, condition: Callable[[], T | None], deadline: float, what: str) -> T:
        def met_or_hopeless() -> T | None:
            ended = self.process.poll()  # asked first: what it did last must not be missed
            value = condition()
            if not value and ended is not None:
                raise RuntimeError(f"flannelpy on {self.host.name} ended with {ended}, without {what}")
            return value

        try:
            return wait_for(met_or_hopeless, deadline, f"{what} from {self.host.name}")
        except (TimeoutError, RuntimeError) as error:
            error.add_note(self.log())
            raise

    def stop(self, deadline: float = 10) -> int:
        """Ask the daemon to stop (SIGTERM).  Returns its exit code.  Raises subprocess.TimeoutExpired."""
        return self._end(signal.SIGTERM, deadline)

    def kill(self) -> None:
        """End the daemon without giving it a chance to clean up (SIGKILL)."""
        self._end(signal.SIGKILL, 10)

    def _end(self, signal_number: int, deadline: float) -> int:
        self.process.send_signal(signal_number)
        code = self.process.wait(deadline)
        self.close()
        return code

    def close(self) -> None:
        """Stop listening to the daemon."""
        with suppress(OSError):  # it may be closed already
            self._notify.shutdown(socket.SHUT_RD)
        self._notify.close()


class Lab:
    """A switch with etcd, and hosts.  A context manager: after it nothing of the lab is left, whatever happened.

    ``etcd`` runs on the switch, or is the first of ``etcd_members`` if there are to be any.

    From the first lab on, SIGTERM and SIGHUP end this process the way Ctrl-C does, so that they clean up too.
    """

    def __init__(self, hosts: int = 3, *, mtu: int = 1500, prefix: str | None = None, etcd_members: int = 0) -> None:
        self.prefix = prefix or f"flannelpy-{os.getpid()}-{next(_serial)}"
        self.dir = _directory(self.prefix)
        self.mtu = mtu
        self.processes: list[subprocess.Popen[str]] = []
        self.switch = Node(self, "switch")
        self.hosts = [Host(self, number) for number in range(1, hosts + 1)]
        machines = [Machine(self, f"etcd{number + 1}", FIRST_ETCD + number) for number in range(etcd_members)]
        peers = {machine.name: f"http://{machine.public_ip}:2380" for machine in machines}
        self.etcd_members = [EtcdMember(machine, peers) for machine in machines]
        self._etcds: Sequence[EtcdServer] = self.etcd_members or [
            EtcdServer(self.dir / "etcd", host=str(UNDERLAY.ip), port=ETCD_PORT, netns=self.switch.netns)
        ]
        self.etcd = self._etcds[0]
        self._kept = False

    def __enter__(self) -> Self:
        _end_as_ctrl_c_does()
        try:
            self.dir.mkdir()  # whoever makes it owns the prefix
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
        self.switch.configure(
            f"link add br0 mtu {self.mtu} type bridge", f"address add {UNDERLAY} dev br0", "link set br0 up"
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
        """The answer of etcd's v2 API, an error included.  The request is sent from the switch."""
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
        """Tell etcd the network config."""
        self.etcd_request("PUT", f"{ETCD_PREFIX}/config", value=config)

    def leases(self) -> list[dict[str, Any]]:
        """The leases as etcd shows them: ``key``, ``value``, ``ttl``, …  Reservations have no ``ttl``."""
        answer = self.etcd_request("GET", f"{ETCD_PREFIX}/subnets")
        leases: list[dict[str, Any]] = answer.get("node", {}).get("nodes", [])
        return sorted(leases, key=lambda lease: str(lease["key"]))

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
                _kill_group(process)
                with process:  # closes its pipes
                    process.wait()
            remove_lab(self.prefix)
            for host in self.hosts:
                for daemon in host.daemons:
                    daemon.close()


def wait_connected(daemons: Sequence[Daemon]) -> None:
    """Return when each is ready and knows the subnets of all others.  Raises as Daemon.wait_for_log does."""
    for daemon in daemons:
        daemon.wait_ready()
    subnets = {daemon: daemon.host.subnet() for daemon in daemons}
    for daemon, other in itertools.permutations(daemons, 2):
        daemon.wait_for_peer(subnets[other])


def lab_exists(prefix: str) -> bool:
    """Whether a lab of this prefix stands, or remains of one."""
    return _directory(prefix).exists() or bool(_namespaces(prefix))


def remove_lab(prefix: str) -> None:
    """End every process in the lab's namespaces, delete the namespaces and the directory, if there are any."""
    with undisturbed():
        names = _namespaces(prefix)
        inside = {_identity(NAMESPACES / name) for name in names}
        wait_for(lambda: not _kill_inside(inside), 10, f"the processes of {prefix} to end")
        _ip_batch([f"netns delete {name}" for name in names])
        shutil.rmtree(_directory(prefix), ignore_errors=True)


def _directory(prefix: str) -> Path:
    return Path("/run") / prefix


def _namespaces(prefix: str) -> list[str]:
    pattern = re.compile(rf"{re.escape(prefix)}-(switch|etcd\d+|host\d+(-c\d+)?)")
    return [path.name for path in NAMESPACES.glob("*") if pattern.fullmatch(path.name)]


def _kill_group(process: subprocess.Popen[str]) -> None:
    """Kill a command that still runs, and what it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def _kill_inside(namespaces: set[tuple[int, int]]) -> int:
    """Kill what runs in these namespaces.  Returns how many processes there were."""
    found = 0
    for proc in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended in the meantime
            if _identity(proc / "ns/net") in namespaces:
                os.kill(int(proc.name), signal.SIGKILL)
                found += 1
    return found


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _ip_batch(commands: Sequence[str], *options: str) -> None:
    argv = ["ip", *options, "-batch", "-"]
    done = subprocess.run(argv, input="\n".join(commands), capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandError(done.returncode, "; ".join(commands), done.stdout, done.stderr)


def _listen(path: Path, lines: list[str]) -> socket.socket:
    """A NOTIFY_SOCKET at ``path`` whose messages are appended to ``lines`` as they come, until it is shut down."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(path))
    path.chmod(0o777)  # as systemd's, for daemons that are not root

    def read() -> None:
        with suppress(OSError):  # the socket was closed before the thread came to receive again
            while message := listener.recv(65536):
                lines.extend(message.decode().splitlines())

    with undisturbed():  # the thread inherits this: signals are for the main thread
        threading.Thread(target=read, daemon=True).start()
    return listener


def _end_as_ctrl_c_does() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            with suppress(ValueError):  # only the main thread may do this
                signal.signal(number, signal.default_int_handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Signals that would end us wait until this block is done."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
