"""Masquerading: traffic that leaves the overlay, or enters it from elsewhere, gets the host's address.

The rules live in a chain of our own with one jump to it, and are put in place as a whole, so doing it again changes
nothing.  The ``iptables`` command is found by PATH: iptables-nft and iptables-legacy behave the same here.
Counterpart: network/ipmasq.go, whose ACCEPT would end the chain of other people's rules; RETURN does not.
"""

from __future__ import annotations

import asyncio
import logging
from ipaddress import IPv4Network

from flannelpy.errors import HostError

log = logging.getLogger(__name__)

_CHAIN = "FLANNEL"
_JUMP = ("POSTROUTING", "-j", _CHAIN)
# Other programs hold the xtables lock for moments.
_WAIT = "--wait=10"


async def set_up_masquerade(network: IPv4Network) -> None:
    """Put the rules in place.  Raises HostError."""
    rules = masquerade_rules(network)
    for rule in rules:
        log.info("Adding iptables rule: %s", rule)
    text = "\n".join(["*nat", f":{_CHAIN} - [0:0]", *(f"-A {rule}" for rule in rules), "COMMIT", ""])
    await _run("iptables-restore", _WAIT, "--noflush", stdin=text)
    if not await _succeeds("iptables", _WAIT, "-t", "nat", "-C", *_JUMP):
        log.info("Adding iptables rule: %s", " ".join(_JUMP))
        await _run("iptables", _WAIT, "-t", "nat", "-A", *_JUMP)


def masquerade_rules(network: IPv4Network) -> list[str]:
    """The chain, in order.  Multicast is never masqueraded."""
    return [
        f"{_CHAIN} -s {network} -d {network} -j RETURN",
        f"{_CHAIN} -s {network} ! -d 224.0.0.0/4 -j MASQUERADE",
        f"{_CHAIN} ! -s {network} -d {network} -j MASQUERADE",
    ]


async def _run(*command: str, stdin: str = "") -> None:
    code, complaint = await _finish(*command, stdin=stdin)
    if code:
        raise HostError(f"-ip-masq: {' '.join(command)} failed: {complaint}")


async def _succeeds(*command: str) -> bool:
    code, _ = await _finish(*command)
    return code == 0


async def _finish(*command: str, stdin: str = "") -> tuple[int, str]:
    """Exit code and last line of complaint of a command."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    except FileNotFoundError as error:
        raise HostError(f"-ip-masq needs the command {command[0]}: install iptables, or leave -ip-masq out") from error
    except OSError as error:
        raise HostError(f"-ip-masq: cannot run {command[0]}: {error.strerror}") from error
    _, stderr = await process.communicate(stdin.encode())
    lines = stderr.decode(errors="replace").strip().splitlines()
    return process.returncode or 0, lines[-1] if lines else "no message"
