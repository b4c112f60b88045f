"""Runs ``flannelpy check`` on a host of a lab."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, NamedTuple

from lab import Host


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


def argv(host: Host, *flags: str) -> list[str]:
    """Return the command with the flags and the variable of the host's daemons."""
    interpreter = [sys.executable, "-P", "-m", "flannelpy", "check"]
    daemon = ["-iface=eth1", f"-etcd-endpoints={host.lab.etcd_endpoints}"]
    return ["env", f"FLANNELD_HOST_ID={host.name}", *interpreter, *daemon, *flags]


def check(host: Host, *flags: str) -> Checked:
    """Return what the check finds on a host."""
    began = time.monotonic()
    done = host.run(*argv(host, "-json", *flags), check=False)
    assert done.stderr == "", done.stderr
    return Checked(json.loads(done.stdout), done.returncode, time.monotonic() - began)
