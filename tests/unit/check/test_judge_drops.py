"""What the daemon dropped during a check, and which lines follow."""

from __future__ import annotations

import pytest

from flannelpy.check import judge_drops
from flannelpy.check.codes import Code
from flannelpy.check.lines import Link, ok
from flannelpy.check.observations import DaemonSeen
from flannelpy.check.verdicts import found
from flannelpy.report import BackendReport, DaemonReport, NetworkReport, NetworkState


def seen(**drops: int) -> DaemonSeen:
    return DaemonSeen(
        DaemonReport((NetworkReport("blue", NetworkState.READY, backend=BackendReport("udp", drops=drops)),))
    )


@pytest.mark.parametrize("reason", ["wrong_sender_port", "unknown_sender", "socket_filtered_or_full"])
def test_datagrams_dropped_by_their_sender_during_the_check_are_named(reason: str) -> None:
    [line] = judge_drops.senders(seen(**{reason: 4}), seen(**{reason: 7}))
    assert (line.code, line.network, line.text) == (
        "senders_rejected",
        "blue",
        f"during the check, flannelpy dropped datagrams: {reason} 3",
    )
    assert list(judge_drops.senders(seen(**{reason: 4}), seen(**{reason: 4}))) == []
    assert list(judge_drops.senders(DaemonSeen(), seen(**{reason: 4}))) == []
    assert list(judge_drops.senders(seen(), DaemonSeen())) == []


def test_other_reasons_are_none_of_the_sender() -> None:
    assert list(judge_drops.senders(seen(), seen(no_route=3))) == []


def test_the_daemon_is_asked_again_only_if_answers_are_missing() -> None:
    assert judge_drops.is_worth_asking([found(Code.DATAGRAMS_LOST, "text", port=8285)])
    assert not judge_drops.is_worth_asking([ok(Link.PEERS, "text"), found(Code.LOSS, "text")])
