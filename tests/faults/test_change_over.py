"""A cluster changes from etcd's v2 store to its v3 store and back under traffic; tests/soak has more hosts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from faults.backends import ALLOC, VXLAN
from faults.change_over import joining_on_both_sides, there_and_back
from lab import ETCD_PREFIX, Lab

pytestmark = pytest.mark.usefixtures("root")


def test_hosts_go_there_and_back_without_a_lost_packet(make_lab: Callable[..., Lab]) -> None:
    there_and_back(make_lab, VXLAN, hosts=3, is_finished=False)


def test_hosts_join_on_both_sides_at_the_same_time(make_lab: Callable[..., Lab]) -> None:
    joining_on_both_sides(make_lab, ALLOC, hosts=6, lease_ttl=5, deleted=ETCD_PREFIX)
