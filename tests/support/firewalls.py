"""The iptables rules of a lab's host, by one flavour of the command."""

from __future__ import annotations

import os
import re
import sys

from lab import Container, Daemon, Host

FLAVOURS = ("nft", "legacy")


def is_forwarding_accepted(host: Host) -> bool:
    """Whether the rules about packets between containers are there, which the daemon adds in the background.

    The table filter comes last.
    """
    rules = host.run("iptables-save", "-t", "filter").stdout
    return rules.count("-j FLANNEL-A-11.0.0.0/16") == 2


def reaches(one: Container, address: object, count: int = 3) -> bool:
    """Whether one of the pings is answered."""
    return not one.run("ping", "-n", f"-c{count}", "-i0.2", "-W1", str(address), check=False).returncode


def large_nftables() -> str:
    """A table with a set of 5,500 ranges, sets of 1,000 addresses each, and 1,000 rules, for ``nft -f -``."""
    ranges = ", ".join(f"{20 + n // 250}.{n % 250}.0.1-{20 + n // 250}.{n % 250}.0.9" for n in range(5500))
    sets = [", ".join(f"{100 + n}.{each // 250}.{each % 250}.1" for each in range(1000)) for n in range(3)]
    rules = [f"ip saddr {{ {ranges} }} drop", *(f"ip saddr {{ {each} }} drop" for each in sets)]
    rules += [f"ip saddr 9.{n // 250}.{n % 250}.0/24 counter drop" for n in range(1000)]
    lines = "\n".join(rules)
    return f"table inet large {{\nchain f {{ type filter hook forward priority 1; policy accept;\n{lines}\n}}\n}}\n"


class Flavour:
    """``iptables`` and its companions are of this flavour for what is started with ``env``."""

    def __init__(self, host: Host, name: str) -> None:
        self.host = host
        self.name = name
        tools = host.run_dir / name
        tools.mkdir(exist_ok=True)
        for tool in ("iptables", "iptables-restore", "iptables-save"):
            link = tools / tool
            link.unlink(missing_ok=True)
            link.symlink_to(f"/usr/sbin/{tool.replace('iptables', f'iptables-{name}')}")
        self.env = {"PATH": f"/run/{name}:{os.environ['PATH']}"}

    def run(self, *argv: str) -> str:
        """An iptables command."""
        return self.host.run(f"/usr/sbin/iptables-{self.name}", *argv).stdout

    def restore(self, text: str) -> None:
        self.host.run(f"/usr/sbin/iptables-{self.name}-restore", "--noflush", input=text)

    def rules(self, table: str) -> list[str]:
        """All rules and chains of a table."""
        return self.run("-t", table, "-S").splitlines()

    def all_rules(self) -> dict[str, list[str]]:
        return {table: self.rules(table) for table in ("nat", "mangle", "raw", "filter")}

    def chains(self, table: str) -> set[str]:
        """Those that look like ours."""
        return {line.split()[1] for line in self.rules(table) if re.match(r"-N FLANNEL-[A-Z]-\d", line)}

    def start_daemon(self, *flags: str, **env: str) -> Daemon:
        daemon = self.host.start_daemon("-iface=eth1", *flags, env={**self.env, **env})
        daemon.wait_ready()
        return daemon

    def clean_up(self, *flags: str, check: bool = True) -> list[str]:
        """What -cleanup logs; with ``check``, it has to succeed."""
        environment = [f"{name}={value}" for name, value in self.env.items()]
        argv = ["env", *environment, sys.executable, "-P", "-m", "flannelpy", "-iface=eth1", "-cleanup", *flags]
        return [line.split("] ", 1)[1] for line in self.host.run(*argv, check=check).stderr.splitlines()]
