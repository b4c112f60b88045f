"""The outages of tests/faults, with the backends other than udp."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from faults.backends import HOST_GW, VXLAN, Backend, over, over_stores
from faults.outages import SCENARIOS, V3_SCENARIOS, Scenario
from lab import Lab
from lab.etcd_stores import Api


@over_stores(VXLAN, HOST_GW, v2=[VXLAN, HOST_GW])
@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_hosts_do_not_notice_an_outage(make_lab: Callable[..., Lab], backend: Backend, scenario: Scenario) -> None:
    scenario(make_lab, backend)


@over(VXLAN, HOST_GW)
@pytest.mark.parametrize("api", [Api.V3])
@pytest.mark.parametrize("scenario", V3_SCENARIOS.values(), ids=V3_SCENARIOS)
def test_hosts_do_not_notice_an_outage_of_v3(
    make_lab: Callable[..., Lab], backend: Backend, scenario: Scenario
) -> None:
    scenario(make_lab, backend)
