"""The report about the iptables rules of one network."""

from ipaddress import IPv4Address, IPv4Network

import pytest

from flannelpy.datapath.traffic import Datagrams
from flannelpy.errors import HostError
from flannelpy.host.firewall import Firewall
from flannelpy.linux import accept_local
from flannelpy.netfilter.network_rules import NetworkRules
from flannelpy.report import FirewallReport


class Carrier:
    """The part of a backend that rules are made for."""

    datagrams = Datagrams("flannel0", 8285, 8285, accepts_local=True)
    forwarding = None


def rules(network: str) -> NetworkRules:
    found = IPv4Network(network)
    subnet = next(found.subnets(new_prefix=24))
    address = IPv4Address("172.17.8.101")
    return NetworkRules(found, subnet, address, Carrier(), [], is_masqueraded=False, is_forwarded=False)


def test_a_healthy_firewall_has_nothing_to_report() -> None:
    assert Firewall(5).report("blue") == FirewallReport()


def test_the_report_has_the_problems_and_repairs_of_its_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def enable(_: str) -> None:
        raise HostError("read-only file system")

    monkeypatch.setattr(accept_local, "is_enabled", lambda _: False)
    monkeypatch.setattr(accept_local, "enable", enable)
    firewall = Firewall(5)
    firewall.add("blue", rules("11.1.0.0/16"), lambda: None)
    assert "read-only file system" in firewall.report("blue").problem
    assert firewall.report("green") == FirewallReport()
    monkeypatch.setattr(accept_local, "enable", lambda _: None)
    firewall.add("blue", rules("11.1.0.0/16"), lambda: None)
    assert firewall.report("blue") == FirewallReport(repairs=1)
