"""Runs ``flannelpy check`` and ``flannelpy status`` on a host of a lab."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, NamedTuple

from lab import Host, Lab, wait_for


class Checked(NamedTuple):
    """The JSON document of one check, its exit code, and how many seconds it took."""

    document: dict[str, Any]
    exit_code: int
    seconds: float

    @property
    def flaws(self) -> list[dict[str, Any]]:
        """Return the lines that are not ok."""
        return [line for line in self.document["lines"] if line["level"] != "ok"]

    def codes(self, level: str = "bad") -> set[str]:
        """Return the codes of all lines of a level."""
        return {line["code"] for line in self.flaws if line["level"] == level}

    def texts(self, code: str) -> list[str]:
        """Return text and remedy of each line with that code."""
        return [f"{line['text']}; {line['remedy']}" for line in self.flaws if line["code"] == code]

    def __repr__(self) -> str:
        return "\n".join(f"{line['level']} {line['link']} {line['text']}" for line in self.document["lines"])


class Status(NamedTuple):
    """The problems of one ``flannelpy status``, each as "text; remedy" by its code, and the exit code."""

    problems: dict[str, list[str]]
    exit_code: int


def argv(host: Host, *flags: str) -> list[str]:
    """Return the command with the flags and the variable of the host's daemons; ``flags`` replace them."""
    interpreter = [sys.executable, "-P", "-m", "flannelpy", "check"]
    daemon = [] if any(flag.startswith("-public-ip=") for flag in flags) else ["-iface=eth1"]
    endpoints = f"-etcd-endpoints={host.lab.etcd_endpoints}"
    return ["env", f"FLANNELD_HOST_ID={host.name}", *interpreter, *daemon, endpoints, *flags]


def check(host: Host, *flags: str) -> Checked:
    """Return what the check finds on a host."""
    began = time.monotonic()
    done = host.run(*argv(host, "-json", *flags), check=False)
    assert done.stderr == "", done.stderr
    return Checked(json.loads(done.stdout), done.returncode, time.monotonic() - began)


def status(host: Host, *flags: str) -> Status:
    """Return what the daemon of a host reports; no problems if no daemon answers."""
    done = host.run(sys.executable, "-P", "-m", "flannelpy", "status", "-json", *flags, check=False)
    found: dict[str, list[str]] = {}
    for problem in json.loads(done.stdout)["problems"] if done.stdout else []:
        found.setdefault(problem["code"], []).append(f"{problem['text']}; {problem['remedy']}")
    return Status(found, done.returncode)


def wait_until_well(host: Host, *, deadline: float = 60) -> None:
    """Return when both commands find nothing on a host."""
    wait_for(lambda: status(host) == ({}, 0), deadline, f"{host.name} to have no problems", pause=0.3)
    wait_for(lambda: not check(host).flaws, deadline, f"{host.name} to have no flaws", pause=0.3)


def set_up(lab: Lab, *flags: str) -> None:
    """Start the daemons and a container on each host; return when both commands find nothing."""
    for daemon in [host.start_daemon(*flags) for host in lab.hosts]:
        daemon.wait_ready()
    for host in lab.hosts:
        host.add_container()
    for host in lab.hosts:
        wait_until_well(host)
