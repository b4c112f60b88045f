"""A host of a lab with a systemd of its own: a copy of this machine's system that boots in the host's network."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from lab import CommandError, Host, wait_for

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PROJECT = Path(__file__).parents[2]
_SOURCES = ("flannelpy", "scripts", "pyproject.toml", "setup.py", "README.md", "LICENSE", "CHANGELOG.md")
_ARCHIVES = PROJECT / "build" / "archives"
_BOOT_SECONDS = 300
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NAMESPACES = ("--mount", "--uts", "--ipc", "--pid", "--net", "--cgroup", "--root", "--wd")


class Machine:
    """A context manager: installs, boots, and leaves nothing.

    ``commands`` run before the boot, in a copy of the project and with a way to package registries.
    """

    def __init__(self, host: Host, packages: Sequence[str], commands: Sequence[str]) -> None:
        self.host = host
        self._packages = packages
        self._commands = commands
        self._log = host.dir / "boot.log"
        self._cgroups = [path / host.lab.prefix for path in _hierarchies()]
        self._leader = 0

    def __enter__(self) -> Self:
        try:
            self._boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _boot(self) -> None:
        self._copy_project()
        _ARCHIVES.mkdir(parents=True, exist_ok=True)
        process = self._start()
        for cgroup in self._cgroups:
            _make_cgroup(cgroup)
            (cgroup / "cgroup.procs").write_text(str(process.pid))
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.close()

        self._nspawn = process
        self._wait_until_booted()

    def _wait_until_booted(self) -> None:
        def is_booted() -> bool:
            if self._nspawn.poll() is not None:
                raise RuntimeError(f"the boot ended with {self._nspawn.returncode}:\n{self._log.read_text()}")
            self._leader = _leader(self._nspawn.pid)
            return bool(self._leader) and self.systemctl("is-system-running", check=False) in {"running", "degraded"}

        try:
            wait_for(is_booted, _BOOT_SECONDS, "the system to boot", pause=0.1)
        except TimeoutError as error:
            error.add_note(self._log.read_text())
            raise

    def _copy_project(self) -> None:
        source = self.host.run_dir / "source"
        source.mkdir()
        for name in _SOURCES:
            path = PROJECT / name
            if path.is_dir():
                shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
            else:
                shutil.copy(path, source)
        (source / "commands").write_text("".join(f"{command}\n" for command in self._commands))

    def _start(self) -> subprocess.Popen[str]:
        netns = f"/run/netns/{self.host.netns}"
        script = str(PROJECT / "tests/systemd/boot.sh")
        arguments = (str(self.host.run_dir), netns, f"/proc/{os.getpid()}/ns/net", str(_ARCHIVES), *self._packages)
        with self._log.open("w") as log:
            process = subprocess.Popen(
                ["nsenter", f"--net={netns}", "unshare", "--mount", "--propagation=private", "sh", script, *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        self.host.lab.processes.append(process)
        return process

    def run(
        self,
        *argv: str,
        check: bool = True,
        timeout: float = 60,
        namespaces: Sequence[str] = _NAMESPACES,
        inherited: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, with no variable but PATH and those that are ``inherited``.

        Raises CommandError (if ``check``), subprocess.TimeoutExpired.
        """
        done = subprocess.run(
            ["nsenter", f"--target={self._leader}", *namespaces, "--", *argv],
            env={**(inherited or {}), "PATH": _PATH},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        if check and done.returncode:
            raise CommandError(done.returncode, shlex.join(argv), done.stdout, done.stderr)
        return done

    def sh(self, command: str, *, timeout: float = 60) -> str:
        """What a line of shell prints.  Raises as ``run`` does."""
        return self.run("sh", "-euc", command, timeout=timeout).stdout

    def sh_with_internet(self, command: str, *, timeout: float) -> None:
        """Run a line of shell in the system's files, and with this machine's network.  Raises as ``run`` does."""
        namespaces = [each for each in _NAMESPACES if each != "--net"]
        self.run("sh", "-euc", command, timeout=timeout, namespaces=namespaces, inherited=dict(os.environ))

    def systemctl(self, *argv: str, check: bool = True, timeout: float = 60) -> str:
        """What systemctl prints, without white space around it.  Raises as ``run`` does."""
        return self.run("systemctl", *argv, check=check, timeout=timeout).stdout.strip()

    def show(self, unit: str, key: str) -> str:
        """A property of a unit."""
        return self.systemctl("show", "--value", f"--property={key}", unit)

    def journal(self, unit: str = "") -> str:
        """What a unit, or everything, has logged since the boot."""
        only = [f"--unit={unit}"] if unit else []
        return self.run("journalctl", "--boot", "--no-pager", "--output=short-monotonic", *only).stdout

    def outside(self, pid: int) -> int:
        """The number by which we know a process inside."""
        for status in Path("/proc").glob("[0-9]*/status"):
            with suppress(OSError):
                numbers = re.search(r"^NSpid:\t(.*)$", status.read_text(), re.MULTILINE)
                if numbers and numbers[1].split()[1:] == [str(pid)] and self._is_inside(status.parent):
                    return int(status.parent.name)
        raise ProcessLookupError(pid)

    def _is_inside(self, process: Path) -> bool:
        return (process / "ns/pid").readlink() == Path(f"/proc/{self._leader}/ns/pid").readlink()

    def close(self) -> None:
        """End it all: the system, its containers and its cgroups."""
        for cgroup in self._cgroups:
            if cgroup.exists():
                wait_for(partial(_is_empty, cgroup), 20, f"the processes in {cgroup} to end")
                wait_for(partial(_remove_cgroup, cgroup), 20, f"the removal of {cgroup}")


def _hierarchies() -> list[Path]:
    lines = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return [Path(fields[1]) for fields in lines if fields[2] in {"cgroup", "cgroup2"}]


def _make_cgroup(path: Path) -> None:
    path.mkdir()
    for name in ("cpuset.cpus", "cpuset.mems"):  # version 1 refuses processes where these are empty
        if (path / name).exists() and (path.parent / name).exists():
            (path / name).write_text((path.parent / name).read_text())


def _is_empty(cgroup: Path) -> bool:
    """Whether nothing runs in a cgroup and those below it; what does is killed."""
    is_empty = True
    for file in cgroup.rglob("cgroup.procs"):
        with suppress(OSError):  # it is gone, or a threaded one
            for pid in file.read_text().split():
                is_empty = False
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
    return is_empty


def _remove_cgroup(cgroup: Path) -> bool:
    for path in sorted((path for path in cgroup.rglob("*") if path.is_dir()), reverse=True):
        with suppress(OSError):  # tried again
            path.rmdir()
    with suppress(OSError):
        cgroup.rmdir()
    return not cgroup.exists()


def _leader(nspawn: int) -> int:
    """The system's first process, seen from outside; 0 when there is none yet."""
    with suppress(OSError):
        for child in Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split():
            if (Path("/proc") / child / "comm").read_text() == "systemd\n" and _number_inside(child) == "1":
                return int(child)
    return 0


def _number_inside(pid: str) -> str:
    match = re.search(r"^NSpid:.*\t(\d+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return match[1] if match else ""
