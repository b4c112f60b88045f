"""The guard sees XFRM policies and rules of the real commands, in time."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import Host, Lab

pytestmark = pytest.mark.usefixtures("root")

PROBE = str(Path(__file__).parent / "guard_probe.py")
#: Beside the time that a check takes, on a machine that is busy.
SLACK = 3.0
RESYNC = 1.0


class Probe:
    """A guard in the namespace of a host; ``resync``: seconds, or None to check only when asked."""

    def __init__(self, host: Host, resync: float | None) -> None:
        argv = [] if resync is None else [str(resync)]
        self._process = host.popen(sys.executable, PROBE, *argv, stdin=subprocess.PIPE)

    def next(self) -> tuple[float, str]:
        """Return the next line: a time, and a reason or "None"."""
        assert self._process.stdout
        at, _, reason = self._process.stdout.readline().partition(" ")
        return float(at), reason.strip()

    def check(self) -> str:
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self.next()[1]


@pytest.fixture
def host() -> Iterator[Host]:
    with Lab(hosts=1) as lab:
        yield lab.hosts[0]


XFRM = {
    "out": "policy add src 0.0.0.0/0 dst 0.0.0.0/0 proto udp dport 8285 dir out action block",
    "in": "policy add src 0.0.0.0/0 dst 0.0.0.0/0 dir in tmpl proto esp mode transport",
    "forwarding": "policy add src 10.0.0.0/8 dst 10.0.0.0/8 dir fwd",
    "default": "policy setdefault out block",
}


@pytest.mark.parametrize("name", XFRM)
def test_an_xfrm_policy_is_noticed_within_100_ms(host: Host, name: str) -> None:
    probe = Probe(host, 3600)
    assert probe.next()[1] == "None"
    host.configure(f"xfrm {XFRM[name]}")
    done = time.monotonic()
    at, reason = probe.next()
    assert "XFRM polic" in reason
    assert at < done + 0.1
    host.configure("xfrm policy setdefault out accept" if name == "default" else "xfrm policy flush")
    assert probe.next()[1] == "None"


def test_a_burst_of_policies_is_noticed(host: Host) -> None:
    """There are more changes than the socket buffer holds."""
    probe = Probe(host, 3600)
    assert probe.next()[1] == "None"
    networks = [f"10.{number // 256}.{number % 256}.0/24" for number in range(3000)]
    host.configure(*(f"xfrm policy add src {each} dst 0.0.0.0/0 dir out" for each in networks))
    assert "XFRM policies" in probe.next()[1]
    host.configure("xfrm policy flush")
    assert probe.next()[1] == "None"


RULES = {
    "nft": ("iptables-nft -A INPUT -p udp --dport 8285 -j DROP", "iptables-nft -F INPUT"),
    "legacy": ("iptables-legacy -A OUTPUT -p udp --dport 8285 -j DROP", "iptables-legacy -F OUTPUT"),
    "masquerading": ("iptables-nft -t nat -A POSTROUTING -o eth1 -j MASQUERADE", "iptables-nft -t nat -F POSTROUTING"),
    "native": ("nft -f /run/rules", "nft delete table inet fw"),
}
TABLE = """table inet fw {{
    set ports {{ type inet_service; elements = {{ 53, 8285 }}; }}
    map decisions {{ type inet_service : verdict; elements = {{ 53 : drop, 8285 : accept }}; }}
    chain sub {{ drop; }}
    chain base {{ type filter hook {hook} priority 0; policy accept; {rule}; }}
}}
"""


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_noticed_within_the_resync_period(host: Host, name: str) -> None:
    (host.run_dir / "rules").write_text(TABLE.format(hook="output", rule="udp dport 8285 drop"))
    add, remove = RULES[name]
    probe = Probe(host, RESYNC)
    assert probe.next()[1] == "None"
    host.run(*add.split())
    done = time.monotonic()
    at, reason = probe.next()
    assert "may match the datagrams between hosts" in reason
    assert at < done + RESYNC + SLACK
    host.run(*remove.split())
    assert probe.next()[1] == "None"


@pytest.fixture(scope="module")
def asked() -> Iterator[Callable[[], str]]:
    """A host with a guard, which is asked after each change."""
    with Lab(hosts=1) as lab:
        probe = Probe(lab.hosts[0], None)

        def check(*commands: str, stdin: str = "") -> str:
            """Run the commands, and return what the guard finds."""
            for command in commands:
                lab.hosts[0].run(*command.split(), input=stdin or None)
            return probe.check()

        yield check


NATIVE = {
    "udp dport 8285 drop": True,
    "udp dport != 8285 drop": False,
    "udp dport { 53, 8000-9000 } drop": True,
    "udp dport { 53, 123 } drop": False,
    "udp dport != { 53, 8285 } drop": False,
    "udp dport @ports drop": True,
    "tcp dport 8285 drop": False,
    "tcp dport != 22 drop": False,
    "tcp flags & (fin|syn) == fin|syn drop": False,
    "icmp type echo-request drop": False,
    "th dport 8285 drop": True,
    "meta l4proto udp drop": True,
    "meta l4proto { tcp, icmp } drop": False,
    "meta l4proto { tcp, udp } th dport 1024-65535 drop": True,
    "meta l4proto { tcp, udp } th dport 1-1023 drop": False,
    "ip protocol 17 drop": True,
    "ip protocol != udp drop": False,
    "ip saddr 172.17.8.0/24 drop": True,
    "ip saddr 172.17.8.103 drop": False,
    "ip saddr != 172.17.8.0/24 drop": False,
    "ip saddr . udp dport { 172.17.8.102 . 8285 } drop": True,
    "ip saddr . udp dport { 172.17.8.102 . 53 } drop": False,
    "ip saddr . tcp dport != { 172.17.8.102 . 22 } drop": False,
    "ip saddr & 0.0.255.255 == 0.0.8.102 drop": True,
    "ip6 saddr fe80::1 drop": False,
    'iifname "eth*" drop': True,
    'iifname { "lo", "docker0" } drop': False,
    'iifname "lo" accept': False,
    'iifname != "lo" drop': True,
    "ct state invalid drop": True,
    "ct state established,related accept": False,
    "meta mark 0x1 drop": True,
    "meta skuid 0 drop": True,
    "fib daddr type local drop": True,
    "limit rate over 10/second drop": True,
    "udp dport vmap { 53 : drop, 8285 : accept }": False,
    "udp dport vmap { 53 : accept, 8285 : jump sub }": True,
    "udp dport vmap { 8285 : continue, 53 : drop }": False,
    "udp dport vmap @decisions": False,
    "meta l4proto vmap { tcp : jump sub }": False,
    "udp dport 8285 counter": True,
    "udp dport 8285 counter accept": False,
    'log prefix "x" accept': True,
    "udp dport 8285 notrack": True,
    "udp dport 8285 meta mark set 1": True,
    "tcp dport 22 log": False,
    "goto sub": True,
    "return": False,
}


@pytest.mark.parametrize("rule", NATIVE)
def test_native_rules_of_nftables(asked: Callable[..., str], rule: str) -> None:
    found = asked("nft -f -", stdin=TABLE.format(hook="input", rule=rule))
    assert asked("nft delete table inet fw") == "None"
    assert found.startswith("the nftables chain inet fw base (" if NATIVE[rule] else "None")


LEAVING = {
    "ip daddr 172.17.8.102 drop": True,
    "ip daddr 172.17.8.103 drop": False,
    "fib daddr type local drop": False,
    'oifname "eth1" drop': True,
    'oifname "lo" accept': False,
    'iifname "docker0" drop': False,
}


@pytest.mark.parametrize("hook", ["output", "postrouting"])
@pytest.mark.parametrize("rule", LEAVING)
def test_native_rules_for_what_leaves(asked: Callable[..., str], hook: str, rule: str) -> None:
    found = asked("nft -f -", stdin=TABLE.format(hook=hook, rule=rule))
    assert asked("nft delete table inet fw") == "None"
    assert found.startswith("the nftables chain inet fw base (" if LEAVING[rule] else "None")


IPTABLES = {
    "-A INPUT -p udp -m udp --dport 8285 -j DROP": True,
    "-A INPUT -p 17 -j LOG": True,
    "-A INPUT -p udp -m multiport ! --dports 53,8285 -j DROP": False,
    "-A INPUT -p udp -m multiport --sports 53,8000:9000 -j DROP": True,
    "-A INPUT -p tcp -m tcp --dport 22 -m conntrack --ctstate NEW -j REJECT": False,
    "-A INPUT -s 172.17.8.102/32 -m mark --mark 0x1 -j DROP": True,
    "-A INPUT -s 172.17.8.103/32 -j DROP": False,
    "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT": False,
    "-A INPUT -p udp -m udp --dport 8285": True,
    "-A OUTPUT -m addrtype --dst-type LOCAL -j DROP": False,
    "-A OUTPUT -m owner --uid-owner 0 -j DROP": True,
    "-P INPUT DROP": True,
}


@pytest.mark.parametrize("flavour", ["nft", "legacy"])
@pytest.mark.parametrize("rule", IPTABLES)
def test_rules_of_iptables(asked: Callable[..., str], flavour: str, rule: str) -> None:
    command = f"iptables-{flavour}"
    found = asked(f"{command} {rule}")
    assert asked(f"{command} -F", f"{command} -P INPUT ACCEPT") == "None"
    assert found.startswith(f"the iptables rule '{rule[:9]}" if IPTABLES[rule] else "None")


#: Native rules in tables of iptables-nft: iptables-save prints some without their sets, and fails at others.
MIXED = {
    "udp dport { 53, 123 } drop": False,
    "udp dport { 53, 8285 } drop": True,
    "udp dport vmap { 8285 : drop }": True,
    "ct state vmap { invalid : drop }": True,
    "udp dport 8285 ct mark set 1": True,
    "meta skuid 0 drop": True,
    "quota over 1 mbytes drop": True,
    "ip dscp 1 drop": True,
    "numgen random mod 2 0 drop": True,
}


@pytest.mark.parametrize("rule", MIXED)
def test_native_rules_in_a_table_of_iptables(asked: Callable[..., str], rule: str) -> None:
    assert asked("iptables-nft -A INPUT -p tcp -j ACCEPT") == "None"
    asked("nft -f -", stdin=f"add rule ip filter INPUT {rule}\n")
    found = asked()  # one failure is none yet
    assert asked("nft flush chain ip filter INPUT") == "None"
    assert (found != "None") is MIXED[rule]
