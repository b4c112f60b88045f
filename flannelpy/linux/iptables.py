"""Masquerading: traffic that leaves the overlay, or enters it from elsewhere, gets the host's address.

The rules live in a chain of our own with one jump to it, and are put in place as a whole, so doing it again changes
nothing.  The ``iptables`` command is found by PATH: iptables-nft and iptables-legacy behave the same here.
Counterpart: network/ipmasq.go, whose ACCEPT would end the chain of other people's rules; RETURN does not.
"""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
from collections.abc import Sequence
from ipaddress import IPv4Network

from flannelpy.errors import HostError

log = logging.getLogger(__name__)

_CHAIN = "FLANNEL"
_JUMP = ("POSTROUTING", "-j", _CHAIN)
# Other programs hold the xtables lock for moments.
_WAIT = "--wait=10"


async def set_up_masquerade(networks: Sequence[IPv4Network]) -> None:
    """Put the rules of all these networks in place, of which the last one is new.  Raises HostError."""
    rules = [rule for network in networks for rule in masquerade_rules(network)]
    for rule in masquerade_rules(networks[-1]):
        log.info("Adding iptables rule: %s", rule)
    text = "\n".join(["*nat", f":{_CHAIN} - [0:0]", *(f"-A {rule}" for rule in rules), "COMMIT", ""])
    await _run("iptables-restore", _WAIT, "--noflush", stdin=text)
    if not await _succeeds("iptables", _WAIT, "-t", "nat", "-C", *_JUMP):
        log.info("Adding iptables rule: %s", " ".join(_JUMP))
        await _run("iptables", _WAIT, "-t", "nat", "-A", *_JUMP)


async def remove_masquerade(network: IPv4Network | None = None) -> list[str]:
    """Remove chain and jumps, and what flanneld v0.5.5 has left for ``network``; what was removed.  Raises HostError.

    The original's jump names the network, so it is found by its target; its fourth rule is known by the network alone.
    While the chain has rules of other networks, only those of ``network`` go.
    """
    if not shutil.which("iptables"):
        return []
    listing = (await _run("iptables", _WAIT, "-t", "nat", "-S")).splitlines()
    if network and (_networks_in(listing) - {str(network)}):
        rules = [rule for rule in masquerade_rules(network) if f"-A {rule}" in listing]
        await _restore([f"-D {rule}" for rule in rules])
        return rules
    ours = {f"-A POSTROUTING ! -s {network} -d {network} -j MASQUERADE"} if network else set()
    rules = [line[3:] for line in listing if line in ours or re.fullmatch(rf"-A .* -j {_CHAIN}", line)]
    chains = [_CHAIN] if f"-N {_CHAIN}" in listing else []
    await _restore([*(f"-D {rule}" for rule in rules), *(f"-{how} {chain}" for chain in chains for how in "FX")])
    return [*rules, *(f"chain {chain}" for chain in chains)]


def _networks_in(listing: Sequence[str]) -> set[str]:
    """Those that our chain has rules for."""
    found = (re.fullmatch(rf"-A {_CHAIN} -s (\S+) -d \1 -j RETURN", line) for line in listing)
    return {match[1] for match in found if match}


async def _restore(commands: Sequence[str]) -> None:
    """All of them at once, or none: a jump that stays would keep the chain."""
    if commands:
        await _run("iptables-restore", _WAIT, "--noflush", stdin="\n".join(["*nat", *commands, "COMMIT", ""]))


def masquerade_rules(network: IPv4Network) -> list[str]:
    """A network's part of the chain, in order.  Multicast is never masqueraded."""
    return [
        f"{_CHAIN} -s {network} -d {network} -j RETURN",
        f"{_CHAIN} -s {network} ! -d 224.0.0.0/4 -j MASQUERADE",
        f"{_CHAIN} ! -s {network} -d {network} -j MASQUERADE",
    ]


async def _run(*command: str, stdin: str = "") -> str:
    """What a command prints.  Raises HostError with its last line of complaint."""
    code, output, complaints = await _finish(*command, stdin=stdin)
    if code:
        last = complaints.strip().splitlines()[-1:] or ["no message"]
        raise HostError(f"-ip-masq: {' '.join(command)} failed: {last[0]}")
    return output


async def _succeeds(*command: str) -> bool:
    code, _, _ = await _finish(*command)
    return code == 0


async def _finish(*command: str, stdin: str = "") -> tuple[int, str, str]:
    """Exit code, output and complaints of a command."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    except FileNotFoundError as error:
        raise HostError(f"-ip-masq needs the command {command[0]}: install iptables, or leave -ip-masq out") from error
    except OSError as error:
        raise HostError(f"-ip-masq: cannot run {command[0]}: {error.strerror}") from error
    stdout, stderr = await process.communicate(stdin.encode())
    return process.returncode or 0, stdout.decode(errors="replace"), stderr.decode(errors="replace")
