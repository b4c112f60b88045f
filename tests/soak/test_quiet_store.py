"""Ten minutes in which nothing happens: the requests that hosts send to etcd, counted by etcd's own metrics."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest
from faults.backends import UDP
from lab import Lab
from lab.etcd_stores import Api

HOSTS = 3
SECONDS = float(os.environ.get("FLANNELPY_SOAK_SECONDS", 10 * 60))
SETTLING_SECONDS = 20
#: For each host and minute, with the default TTL of leases.
MOST_REQUESTS = 2


@pytest.mark.parametrize("api", [Api.V3])
def test_a_quiet_host_sends_at_most_two_requests_a_minute(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=HOSTS)
    lab.put_config(UDP.config())
    daemons = lab.start_daemons("-iface=eth1")
    time.sleep(SETTLING_SECONDS)
    before = lab.etcd.calls()
    time.sleep(SECONDS)
    after = lab.etcd.calls()
    calls = {name: count - before[name] for name, count in after.items() if count != before[name]}
    per_minute = sum(calls.values()) / HOSTS / (SECONDS / 60)
    print(f"{per_minute:.2f} requests of each host in a minute: {calls}")
    assert per_minute <= MOST_REQUESTS
    assert all(daemon.stop() == 0 for daemon in daemons)
