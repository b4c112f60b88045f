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

_OF_SENDERS = [
    reason.name.lower()
    for reason in (DropReason.WRONG_SENDER_PORT, DropReason.UNKNOWN_SENDER, DropReason.SOCKET_FILTERED_OR_FULL)
]


def is_worth_asking(lines: Sequence[Line]) -> bool:
    """Return whether a peer's answers may have arrived, and have been dropped here."""
    return any(line.code == Code.DATAGRAMS_LOST for line in lines)


def senders(before: DaemonSeen, after: DaemonSeen) -> Iterator[Line]:
    """Yield a line for each network whose daemon dropped datagrams by their sender between two reports."""
    for network in after.report.networks if after.report else ():
        drops, old = _drops(network), _drops(before.network(network.name))
        risen = {name: drops.get(name, 0) - old.get(name, 0) for name in _OF_SENDERS}
        counts = [f"{name} {count}" for name, count in risen.items() if count > 0]
        if before.network(network.name) and counts:
            text = f"during the check, flannelpy dropped datagrams: {', '.join(counts)}"
            yield replace(found(Code.SENDERS_REJECTED, text), network=network.name)


def _drops(network: NetworkReport | None) -> dict[str, int]:
    return dict(network.backend.drops) if network and network.backend else {}
