"""Ten hosts use a cluster of etcd whose members fail in all ways.

Over each store ten minutes by udp; over v3 less than two by each other backend.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from faults.backends import HOST_GW, UDP, VXLAN, Backend, over_stores
from lab import Lab
from support.chaos import MEMBERS, endure

SECONDS = float(os.environ.get("FLANNELPY_SOAK_SECONDS", 10 * 60))


@over_stores(UDP, VXLAN, HOST_GW, v2=[UDP])
def test_hosts_do_not_notice_failing_etcd_members(make_lab: Callable[..., Lab], backend: Backend) -> None:
    endure(make_lab(hosts=10, etcd_members=MEMBERS), SECONDS if backend is UDP else SECONDS / 6, backend)
