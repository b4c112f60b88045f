"""Ten minutes in which nothing changes: a daemon on v3 sends etcd at most two requests a minute, by etcd's count."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable

from lab import Lab
from lab.etcd_metrics import EtcdWork
from lab.etcd_stores import Api

SECONDS = float(os.environ.get("FLANNELPY_SOAK_SECONDS", 10 * 60))
REQUESTS_PER_MINUTE = 2
HOSTS = 2
#: For the requests of the start.
SETTLED = 5


def test_a_quiet_daemon_sends_at_most_two_requests_a_minute(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=HOSTS, api=Api.V3)
    lab.put_config()
    lab.start_daemons("-iface=eth1")
    time.sleep(SETTLED)
    before, calls_before = EtcdWork.of(lab.etcd.metrics()), lab.etcd.calls()
    time.sleep(SECONDS)
    requests = EtcdWork.of(lab.etcd.metrics()).requests - before.requests
    calls = {method: count - calls_before.get(method, 0) for method, count in lab.etcd.calls().items()}
    sent = {method: count for method, count in calls.items() if count}
    print(f"{requests:.0f} requests of {HOSTS} daemons in {SECONDS:.0f} s: {sent}")
    assert requests <= HOSTS * REQUESTS_PER_MINUTE * math.ceil(SECONDS / 60), sent
