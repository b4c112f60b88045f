"""Half a minute of failing etcd members; tests/soak runs for longer."""

from __future__ import annotations

from collections.abc import Callable

from faults.backends import UDP, Backend, over_stores
from lab import Lab
from lab.etcd_stores import Api
from support.chaos import MEMBERS, endure

SECONDS = {Api.V3: 20.0, Api.V2: 8.0}


@over_stores(UDP, v2=[UDP])
def test_hosts_do_not_notice_failing_etcd_members(make_lab: Callable[..., Lab], backend: Backend, api: Api) -> None:
    endure(make_lab(hosts=4, etcd_members=MEMBERS), SECONDS[api], backend)
