"""Masquerading rules in a real kernel, by both flavours of iptables: put in place, and all of it removed again."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from lab import Host, Lab

NETWORK = "11.0.0.0/16"
SET_UP = "asyncio.run(iptables.set_up_masquerade([IPv4Network(sys.argv[1])]))"
REMOVE = "print(*asyncio.run(iptables.remove_masquerade(IPv4Network(sys.argv[1]))), sep='\\n')"
# What flanneld v0.5.5 puts in place for -ip-masq.
ORIGINAL = f"""*nat
:FLANNEL - [0:0]
-A FLANNEL -d {NETWORK} -j ACCEPT
-A FLANNEL ! -d 224.0.0.0/4 -j MASQUERADE
-A POSTROUTING -s {NETWORK} -j FLANNEL
-A POSTROUTING ! -s {NETWORK} -d {NETWORK} -j MASQUERADE
COMMIT
"""
OTHERS = """*nat
:DOCKER - [0:0]
-A DOCKER -i docker0 -j RETURN
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -m comment --comment "not for -j FLANNEL" -j DOCKER
COMMIT
"""


class Firewall:
    """The nat table of a host, as one flavour of iptables shows it."""

    def __init__(self, host: Host, flavour: str) -> None:
        self.host = host
        self.command = f"/usr/sbin/iptables-{flavour}"
        tools = host.run_dir / flavour
        tools.mkdir()
        for tool in ("iptables", "iptables-restore"):
            (tools / tool).symlink_to(f"/usr/sbin/{tool.replace('iptables', f'iptables-{flavour}')}")
        self.path = f"/run/{flavour}:{os.environ['PATH']}"

    def rules(self) -> str:
        return self.host.run(self.command, "-t", "nat", "-S").stdout

    def restore(self, text: str) -> None:
        self.host.run(f"{self.command}-restore", "--noflush", input=text)

    def python(self, statement: str) -> list[str]:
        """What our function does on the host, printed line by line."""
        program = (
            f"import asyncio, sys; from ipaddress import IPv4Network; from flannelpy.linux import iptables; {statement}"
        )
        argv = ["env", f"PATH={self.path}", sys.executable, "-c", program, NETWORK]
        return self.host.run(*argv).stdout.split("\n")[:-1]


@pytest.fixture(params=["nft", "legacy"])
def firewall(request: pytest.FixtureRequest) -> Iterator[Firewall]:
    """A table in which somebody else has rules."""
    with Lab(hosts=1) as lab:
        firewall = Firewall(lab.hosts[0], request.param)
        firewall.restore(OTHERS)
        yield firewall


def test_our_rules_go_and_others_stay(firewall: Firewall) -> None:
    before = firewall.rules()
    firewall.python(SET_UP)
    firewall.restore("*nat\n-A POSTROUTING -j FLANNEL\nCOMMIT\n")
    assert firewall.python(REMOVE) == ["POSTROUTING -j FLANNEL", "POSTROUTING -j FLANNEL", "chain FLANNEL"]
    assert firewall.rules() == before


def test_what_flanneld_has_left_goes_also_when_our_rules_are_there_too(firewall: Firewall) -> None:
    before = firewall.rules()
    firewall.restore(ORIGINAL)
    firewall.python(SET_UP)
    assert firewall.python(REMOVE) == [
        f"POSTROUTING -s {NETWORK} -j FLANNEL",
        f"POSTROUTING ! -s {NETWORK} -d {NETWORK} -j MASQUERADE",
        "POSTROUTING -j FLANNEL",
        "chain FLANNEL",
    ]
    assert firewall.rules() == before


def test_a_second_time_there_is_nothing_left_to_remove(firewall: Firewall) -> None:
    before = firewall.rules()
    assert firewall.python(REMOVE) == [""]
    assert firewall.rules() == before
