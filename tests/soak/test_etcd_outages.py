"""The outages of tests/faults, with the backends other than udp."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from faults.backends import HOST_GW, VXLAN, Backend, over
from faults.outages import SCENARIOS, Scenario
from lab import Lab


@over(VXLAN, HOST_GW)
@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_hosts_do_not_notice_an_outage(make_lab: Callable[..., Lab], backend: Backend, scenario: Scenario) -> None:
    scenario(make_lab, backend)
