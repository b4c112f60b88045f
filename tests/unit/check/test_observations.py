"""Which peers a daemon's answer has."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from flannelpy.check.observations import DaemonSeen, Peer
from flannelpy.report import DaemonReport, NetworkReport, NetworkState, PeerReport

SUBNET, PUBLIC_IP = IPv4Network("11.0.2.0/24"), IPv4Address("172.17.8.102")
PEERS = {"blue": [PeerReport(SUBNET, PUBLIC_IP, 1.0)]}


def seen(state: NetworkState) -> DaemonSeen:
    return DaemonSeen(DaemonReport((NetworkReport("blue", state), NetworkReport("green", state))), PEERS)


@pytest.mark.parametrize("state", [NetworkState.READY, NetworkState.DEGRADED])
def test_a_network_in_service_has_the_peers_of_the_daemon(state: NetworkState) -> None:
    assert seen(state).peers_of("blue") == [Peer(SUBNET, PUBLIC_IP)]
    assert seen(state).peers_of("green") == []
    assert seen(state).peers_of("red") is None


def test_before_that_and_without_an_answer_the_peers_are_not_known() -> None:
    assert seen(NetworkState.WAITING_FOR_PEERS).peers_of("blue") is None
    assert DaemonSeen().peers_of("") is None
