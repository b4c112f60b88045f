"""Ten hosts over a cluster of etcd whose members fail in all ways for ten minutes."""

from __future__ import annotations

import os
from collections.abc import Callable

from chaos import MEMBERS, endure
from lab import Lab

SECONDS = float(os.environ.get("FLANNELPY_SOAK_SECONDS", 10 * 60))


def test_failing_etcd_members_are_not_noticed(make_lab: Callable[..., Lab]) -> None:
    endure(make_lab(hosts=10, etcd_members=MEMBERS), SECONDS)
