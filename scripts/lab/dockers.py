"""Real Docker on the hosts of a lab: a dockerd each, started from the subnet file that the host's flannelpy wrote.

Each Docker has namespaces of its own for processes and mounts, as a machine has, whose first process is ``tini``.  When
that ends, the kernel ends dockerd, containerd, its shims and all containers with it, and all mounts go.  What Docker
writes is in a tmpfs there (``/mnt``), and the host's private /run is its /run.  So neither a Docker of this machine nor
any file of it is touched.  Only cgroups are left, and ``Docker.remove`` removes them.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lab import INTERRUPTIBLE, NAMESPACES, Host, Node, undisturbed, wait_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lab.docker_packages import Release

#: The commands of README.md and docs/manual.md that start dockerd; arguments are more options for dockerd.
START = """\
. /run/flannel/subnet.env
[ "$FLANNEL_IPMASQ" = true ] && masq=false || masq=true
dockerd --bip="$FLANNEL_SUBNET" --mtu="$FLANNEL_MTU" --ip-masq="$masq"
"""
#: The commands of docs/manual.md for each network of -networks, here for the network blue.
CREATE_NETWORK = """\
. /run/flannel/networks/blue.env
[ "$FLANNEL_IPMASQ" = true ] && masq=false || masq=true
bridge=${FLANNEL_SUBNET%/*}
docker network create --subnet="${bridge%.*}.$((${bridge##*.} - 1))/${FLANNEL_SUBNET#*/}" \\
    --opt com.docker.network.driver.mtu="$FLANNEL_MTU" \\
    --opt com.docker.network.bridge.enable_ip_masquerade="$masq" blue
"""
IMAGE = "tiny"
_START_SECONDS = 60
_STOP_SECONDS = 30
_MACHINE = """\
set -e
cd "$1"
mount -n -t tmpfs docker /mnt
mkdir /mnt/release /mnt/data /mnt/etc /mnt/work /mnt/opt
mount -n -o bind,ro . /mnt/release
mount -n -t overlay docker -o lowerdir=/etc,upperdir=/mnt/etc,workdir=/mnt/work /etc
mkdir -p /etc/docker
mount -n -t tmpfs docker /etc/docker
mount -n --bind /mnt/opt /opt
mount -n --bind "$2" /run
[ ! -d /sys/kernel/security ] || mount -n -t tmpfs docker /sys/kernel/security
echo ready
cd /
exec /mnt/release/usr/bin/tini-static -- sleep infinity
"""
_CGROUPS = Path("/sys/fs/cgroup")


class DockerError(Exception):
    """dockerd has not come up, or a machine for it; the message holds the end of its log."""


class DockerContainer(Node):
    """A container that ``docker run`` has started.  Commands of this machine run in its network namespace."""

    def __init__(self, docker: Docker, name: str) -> None:
        super().__init__(docker.lab, f"{docker.name}-{name}")
        self.docker = docker
        self.host = docker.host
        self.container = name
        self.look()

    def look(self) -> None:
        """Learn address and namespace, which change when the container is started again."""
        [state] = json.loads(self.docker.docker("inspect", self.container))
        settings: dict[str, Any] = state["NetworkSettings"]
        [network] = settings["Networks"].values()
        self.address = IPv4Address(network["IPAddress"])
        self._namespace = f"{self.docker.outside}/run/docker/netns/{Path(settings['SandboxKey']).name}"

    def enter(self, *argv: str) -> list[str]:
        """As everywhere, but with the file system of this machine, not of the container."""
        return ["nsenter", f"--net={self._namespace}", *INTERRUPTIBLE, *argv]

    def exec(self, *argv: str, check: bool = True) -> str:
        """Return what a command prints inside the container.  Raises CommandError, if ``check``."""
        return self.docker.run("docker", "exec", self.container, *argv, check=check).stdout

    def ping_text(self, address: IPv4Address, count: int) -> str:
        """Return what busybox's ping prints, a line for each answer."""
        return self.exec("ping", f"-c{count}", "-i0.1", "-W2", str(address), check=False)


class Docker(Node):
    """The Docker of a host: commands run where dockerd runs.  A context manager: after it nothing is left."""

    def __init__(self, host: Host, release: Release) -> None:
        super().__init__(host.lab, host.name)
        self.host = host
        self.release = release
        self.log_file = host.dir / "dockerd.log"
        self._cgroup = f"{host.lab.prefix}-{host.name}"
        self._machine: subprocess.Popen[str] | None = None
        self._dockerd: subprocess.Popen[str] | None = None

    @property
    def outside(self) -> str:
        """The root of Docker's file system, seen from outside."""
        assert self._machine
        return f"/proc/{self._machine.pid}/root"

    def enter(self, *argv: str) -> list[str]:
        """Return the command line that runs ``argv`` beside dockerd, with this release's programs first in PATH."""
        assert self._machine
        of = f"/proc/{self._machine.pid}/ns"
        spaces = [f"--net={of}/net", f"--mount={of}/mnt", f"--pid={of}/pid_for_children"]
        return ["nsenter", *spaces, *INTERRUPTIBLE, *self._environment(), *argv]

    @property
    def entrance(self) -> str:
        """The prefix of a ``docker`` command that a user types in a shell."""
        assert self._machine
        pid = self._machine.pid
        return f"nsenter -t {pid} -n -m --pid=/proc/{pid}/ns/pid_for_children /mnt/release/usr/bin/docker"

    def _environment(self) -> list[str]:
        libraries = {path.parent for path in self.release.directory.glob("lib/*/libdevmapper*")}
        inside = [f"/mnt/release/{path.relative_to(self.release.directory)}" for path in libraries]
        programs = f"/mnt/release/usr/sbin:/mnt/release/usr/bin:{os.environ['PATH']}:/usr/sbin:/sbin"
        unset = [f"--unset={name}" for name in os.environ if name.startswith("DOCKER_")]
        return ["env", *unset, f"PATH={programs}", f"LD_LIBRARY_PATH={':'.join(inside)}", "HOME=/mnt"]

    def __enter__(self) -> Self:
        try:
            self._boot()
        except BaseException:
            self.remove()
            raise
        return self

    def _boot(self) -> None:
        unshare = ("unshare", "--mount", "--propagation=slave", "--pid", "--fork", "--kill-child", "--mount-proc")
        argv = ["nsenter", f"--net={NAMESPACES / self.netns}", *unshare]
        argv += ["sh", "-c", _MACHINE, "sh", str(self.release.directory), str(self.host.run_dir)]
        with self.log_file.open("a") as log:
            self._machine = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        self.lab.processes.append(self._machine)
        assert self._machine.stdout
        if self._machine.stdout.readline() != "ready\n":
            raise DockerError(f"no machine for dockerd on {self.name}:\n{self.log()}")

    def start(self, *options: str, script: str = START) -> None:
        """Start dockerd with more options, and return when it answers.  Raises DockerError."""
        with self.log_file.open("a") as log:
            self._dockerd = self.popen(
                "sh", "-ec", script.rstrip() + ' "$@"', "sh", *self._options(), *options, stdout=log, stderr=log
            )
        wait_for(self._has_come_up, _START_SECONDS, f"dockerd on {self.name}")

    def _options(self) -> Sequence[str]:
        """Return what keeps dockerd apart from this machine; vfs works on every file system."""
        return (
            "--data-root=/mnt/data",
            "--storage-driver=vfs",
            "--exec-opt=native.cgroupdriver=cgroupfs",
            f"--cgroup-parent=/{self._cgroup}",
        )

    def _has_come_up(self) -> bool:
        assert self._dockerd
        if self._dockerd.poll() is not None:
            raise DockerError(f"dockerd on {self.name} has ended with {self._dockerd.returncode}:\n{self.log()}")
        with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
            connection.settimeout(5)
            connection.connect(str(self.host.run_dir / "docker.sock"))
            connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in connection.recv(4096)
        return False

    def log(self) -> str:
        """Return what dockerd has logged."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def docker(self, *argv: str, timeout: float = 60) -> str:
        """Return what a ``docker`` command prints.  Raises CommandError."""
        return self.run("docker", *argv, timeout=timeout).stdout

    def import_image(self) -> None:
        """Make the image from busybox, unless it is there.  Its containers do nothing."""
        if not self.docker("images", "--quiet", IMAGE):
            self.docker("import", "--change=CMD sleep 1000000", "/mnt/release/image.tar", IMAGE)

    def run_container(self, name: str, *options: str) -> DockerContainer:
        """Start a container of the image that sleeps until SIGTERM, and then ends at once."""
        self.docker("run", "--detach", f"--name={name}", "--stop-signal=KILL", *options, IMAGE)
        return DockerContainer(self, name)

    def runs_containers(self) -> bool:
        """Whether any container runs."""
        return bool(self.docker("ps", "--quiet"))

    def stop(self) -> None:
        """Ask dockerd to stop, and wait until it has.  Raises subprocess.TimeoutExpired."""
        self._end("TERM")

    def kill(self) -> None:
        """End dockerd without giving it a chance to clean up.  Its containerd and its containers stay."""
        self._end("KILL")

    def _end(self, name: str) -> None:
        assert self._dockerd
        pid = Path(f"{self.outside}/run/docker.pid").read_text().strip()
        self.run("kill", "-s", name, pid)
        self._dockerd.wait(_STOP_SECONDS)

    def remove(self) -> None:
        """End all of it and remove its cgroups; a second call does nothing."""
        with undisturbed():
            if self._machine:
                _shut_down(self._machine)
            remove_cgroups(self._cgroup)

    def __exit__(self, *_: object) -> None:
        self.remove()


def _shut_down(unshare: subprocess.Popen[str]) -> None:
    """End the first process of a machine, and return when all others have ended, too."""
    if unshare.poll() is not None:
        return
    children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    if not children:
        unshare.kill()
    unshare.wait(_STOP_SECONDS)


def remove_cgroups(pattern: str) -> None:
    """Remove the cgroups of Dockers that have ended, by a pattern for their names.  Raises TimeoutError."""
    found = [path for depth in ("", "*/") for path in _CGROUPS.glob(f"{depth}{pattern}")]
    wait_for(lambda: not any(map(_is_left, found)), _STOP_SECONDS, f"the cgroups {pattern} to end")


def _is_left(path: Path) -> bool:
    """Whether a cgroup cannot be removed yet: the processes in it may take a moment to end."""
    for directory, _, _ in os.walk(path, topdown=False):
        with suppress(OSError):
            Path(directory).rmdir()
    return path.exists()
