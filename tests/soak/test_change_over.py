"""The change-over of tests/faults with all hosts: under traffic, and while 20 hosts join on both sides."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from faults.backends import HOST_GW, VXLAN, Backend, over
from faults.change_over import joining_on_both_sides, there_and_back
from lab import Lab

pytestmark = pytest.mark.usefixtures("root")


@over(VXLAN, HOST_GW)
@pytest.mark.parametrize("is_finished", [False, True])
def test_six_hosts_go_there_and_back_without_a_lost_packet(
    make_lab: Callable[..., Lab], backend: Backend, is_finished: bool
) -> None:
    there_and_back(make_lab, backend, hosts=6, is_finished=is_finished)


def test_twenty_hosts_join_on_both_sides_at_the_same_time(make_lab: Callable[..., Lab]) -> None:
    joining_on_both_sides(make_lab, VXLAN, hosts=20)
