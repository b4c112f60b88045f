"""Judges what the daemon dropped while the check pinged.  Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from flannelpy.check.codes import Code
from flannelpy.check.lines import Line
from flannelpy.check.observations import DaemonSeen
from flannelpy.check.verdicts import found
from flannelpy.packet.drops import DropReason
from flannelpy.report import NetworkReport

_BY_SENDER = (DropReason.WRONG_SENDER_PORT, DropReason.UNKNOWN_SENDER, DropReason.SOCKET_FILTERED_OR_FULL)
# Lines about packets that the daemon itself may have lost.
_LOST = frozenset(
    {Code.DATAGRAMS_LOST, Code.LOSS, Code.MTU_TOO_LARGE, Code.LONG_PACKETS_LOST, Code.PING_REFUSED, Code.PEER_SILENT}
)


def is_worth_asking(lines: Sequence[Line]) -> bool:
    """Return whether packets to a peer, or its answers, may have been dropped by the daemon."""
    return any(line.code in _LOST for line in lines)


def during(before: DaemonSeen, after: DaemonSeen, lines: Sequence[Line]) -> Iterator[Line]:
    """Yield lines about what each network's daemon dropped between two reports; ``lines``: all others."""
    for network in after.report.networks if after.report else ():
        if old := before.network(network.name):
            codes = {line.code for line in lines if line.network == network.name}
            yield from (replace(line, network=network.name) for line in _of_network(old, network, codes))


def _of_network(old: NetworkReport, new: NetworkReport, codes: set[str]) -> Iterator[Line]:
    """Yield the lines about one network, which has lines with these codes."""
    rejected = _risen(old, new, DropReason.SEND_FAILED)
    # To a peer without a route, the daemon sends what containers send: that is no other fault.
    if rejected and not codes.isdisjoint(_LOST) and Code.NO_ROUTE_TO_PEER not in codes:
        yield found(Code.SEND_FAILED, f"during the check, the kernel rejected datagrams of flannelpy: {rejected}")
    by_sender = _risen(old, new, *_BY_SENDER)
    if by_sender and Code.DATAGRAMS_LOST in codes:
        yield found(Code.SENDERS_REJECTED, f"during the check, flannelpy dropped datagrams: {by_sender}")


def _risen(old: NetworkReport, new: NetworkReport, *reasons: DropReason) -> str:
    """Return by how much the counts of these reasons have risen; empty if none has."""
    before, after = (one.backend.drops if one.backend else {} for one in (old, new))
    risen = {name: after.get(name, 0) - before.get(name, 0) for name in (reason.name.lower() for reason in reasons)}
    return ", ".join(f"{name} {count}" for name, count in risen.items() if count > 0)
