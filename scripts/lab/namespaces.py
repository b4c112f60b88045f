"""Network namespaces: commands that run in one, processes that end with it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lab.lab import Lab

NAMESPACES = Path("/run/netns")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Stands before a command that SIGINT and SIGHUP must end.  A shell has its background jobs ignore SIGINT, nohup has
#: its command ignore SIGHUP, and their children do, too.
INTERRUPTIBLE = ("env", "--default-signal=INT,HUP")

T = TypeVar("T")


class CommandError(subprocess.CalledProcessError):
    """A command failed; unlike the parent class's, this message has the output of the command."""

    def __str__(self) -> str:
        return f"{super().__str__()}\n{self.stdout}{self.stderr}".rstrip()


def wait_for(condition: Callable[[], T | None], deadline: float, what: str, *, pause: float = 0.01) -> T:
    """Return the condition's first true value.  Raises TimeoutError when there is none within ``deadline`` seconds.

    The condition is asked for a third of the time at most: those that start a program would keep a processor busy.
    """
    end = time.monotonic() + deadline
    asked = time.monotonic()
    while not (value := condition()):
        now = time.monotonic()
        if now > end:
            raise TimeoutError(f"waited {deadline:g} s for {what}")
        time.sleep(max(pause, 2 * (now - asked)))
        asked = time.monotonic()
    return value


class Node:
    """One namespace of a lab: a place where commands run."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = name
        self.netns = f"{lab.prefix}-{name}"
        self.dir = lab.dir / name

    def enter(self, *argv: str) -> list[str]:
        """Return the command line that runs ``argv`` in this namespace, in the same process, so with the same pid."""
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
                kill_group(process)
        self.lab.processes.remove(process)
        if check and process.returncode:
            raise CommandError(process.returncode, shlex.join(argv), stdout, stderr)
        return subprocess.CompletedProcess(argv, process.returncode, stdout, stderr)

    def configure(self, *commands: str) -> None:
        """Run ``ip`` commands in here, in one process."""
        ip_batch(commands, "-n", self.netns)

    def create(self) -> None:
        """Create the namespace with its loopback up, forwarding as a router does."""
        self.dir.mkdir(exist_ok=True)
        ip_batch([f"netns add {self.netns}"])
        self.configure("link set lo up")
        self.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")


def kill_group(process: subprocess.Popen[str]) -> None:
    """Kill a command that still runs, and what it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def kill_inside(namespaces: set[tuple[int, int]]) -> int:
    """Kill what runs in these namespaces.  Returns how many processes there were."""
    found = 0
    for proc in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended in the meantime
            if identity(proc / "ns/net") in namespaces:
                os.kill(int(proc.name), signal.SIGKILL)
                found += 1
    return found


def identity(path: Path) -> tuple[int, int]:
    """Return device and inode number, which identify a namespace."""
    status = path.stat()
    return status.st_dev, status.st_ino


def ip_batch(commands: Sequence[str], *options: str) -> None:
    """Run ``ip`` commands in one process.  Raises CommandError."""
    argv = ["ip", *options, "-batch", "-"]
    done = subprocess.run(argv, input="\n".join(commands), capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandError(done.returncode, "; ".join(commands), done.stdout, done.stderr)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Delay signals that would end this process until the block is done."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
