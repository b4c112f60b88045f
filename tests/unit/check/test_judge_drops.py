"""What the daemon dropped during a check, and which lines follow."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flannelpy.check import judge_drops
from flannelpy.check.codes import Code
from flannelpy.check.lines import Level, Line, Link, ok
from flannelpy.check.observations import DaemonSeen
from flannelpy.check.verdicts import found
from flannelpy.report import BackendReport, DaemonReport, NetworkReport, NetworkState


def seen(**drops: int) -> DaemonSeen:
    return DaemonSeen(
        DaemonReport((NetworkReport("blue", NetworkState.READY, backend=BackendReport("udp", drops=drops)),))
    )


LOST = found(Code.DATAGRAMS_LOST, "text", port=8285)


def judged(before: DaemonSeen, after: DaemonSeen, *lines: Line) -> list[Line]:
    return list(judge_drops.during(before, after, [replace(line, network="blue") for line in lines]))


@pytest.mark.parametrize("reason", ["wrong_sender_port", "unknown_sender", "socket_filtered_or_full"])
def test_datagrams_dropped_by_their_sender_during_the_check_are_named(reason: str) -> None:
    [line] = judged(seen(**{reason: 4}), seen(**{reason: 7}), LOST)
    assert (line.code, line.network, line.text) == (
        "senders_rejected",
        "blue",
        f"during the check, flannelpy dropped datagrams: {reason} 3",
    )
    assert judged(seen(**{reason: 4}), seen(**{reason: 4}), LOST) == []
    assert judged(DaemonSeen(), seen(**{reason: 4}), LOST) == []
    assert judged(seen(), DaemonSeen(), LOST) == []


def test_other_reasons_are_none_of_the_sender() -> None:
    assert judged(seen(), seen(no_route=3), LOST) == []


@pytest.mark.parametrize(
    "lost", [LOST, found(Code.LOSS, "text"), found(Code.LONG_PACKETS_LOST, "text"), found(Code.PING_REFUSED, "text")]
)
def test_datagrams_that_the_kernel_rejected_during_the_check_are_named(lost: Line) -> None:
    assert judge_drops.is_worth_asking([lost])
    [line] = judged(seen(send_failed=4), seen(send_failed=7), lost)
    assert (line.code, line.level, line.network) == ("send_failed", Level.BAD, "blue")
    assert line.text == "during the check, the kernel rejected datagrams of flannelpy: send_failed 3"
    assert judged(seen(send_failed=4), seen(send_failed=4), lost) == []


def test_datagrams_rejected_for_the_lack_of_a_route_have_a_line_of_their_own() -> None:
    no_route = found(Code.NO_ROUTE_TO_PEER, "text", address="172.17.8.102")
    assert judged(seen(), seen(send_failed=3), LOST, no_route) == []


def test_each_network_is_judged_by_its_own_lines() -> None:
    both = seen(send_failed=1, unknown_sender=1)
    assert list(judge_drops.during(seen(), both, [replace(LOST, network="green")])) == []


def test_the_daemon_is_asked_again_only_if_packets_are_missing() -> None:
    assert not judge_drops.is_worth_asking([ok(Link.PEERS, "text"), found(Code.BRIDGE_SILENT, "text")])
