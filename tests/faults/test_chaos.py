"""Half a minute of failing etcd members; tests/soak runs for longer."""

from __future__ import annotations

from collections.abc import Callable

from faults.backends import UDP, Backend, over
from lab import Lab
from support.chaos import MEMBERS, endure

SECONDS = 20.0


@over(UDP)
def test_hosts_do_not_notice_failing_etcd_members(make_lab: Callable[..., Lab], backend: Backend) -> None:
    endure(make_lab(hosts=4, etcd_members=MEMBERS), SECONDS, backend)
