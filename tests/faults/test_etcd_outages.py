"""etcd is away for longer than the leases last, and returns in every possible state."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from faults.backends import HOST_GW, UDP, VXLAN, Backend, over, over_stores
from faults.outages import SCENARIOS, V3_SCENARIOS, Scenario, away_for_longer_than_the_leases_last
from lab import Lab
from lab.etcd_stores import Api


@over_stores(UDP, VXLAN, HOST_GW, v2=[UDP])
def test_an_etcd_that_is_away_for_longer_than_the_leases_last(make_lab: Callable[..., Lab], backend: Backend) -> None:
    away_for_longer_than_the_leases_last(make_lab, backend)


@over_stores(UDP, v2=[UDP])
@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_hosts_do_not_notice_an_outage(make_lab: Callable[..., Lab], backend: Backend, scenario: Scenario) -> None:
    """tests/soak has the other backends."""
    scenario(make_lab, backend)


@over(UDP)
@pytest.mark.parametrize("api", [Api.V3])
@pytest.mark.parametrize("scenario", V3_SCENARIOS.values(), ids=V3_SCENARIOS)
def test_hosts_do_not_notice_an_outage_of_v3(
    make_lab: Callable[..., Lab], backend: Backend, scenario: Scenario
) -> None:
    """tests/soak has the other backends."""
    scenario(make_lab, backend)
