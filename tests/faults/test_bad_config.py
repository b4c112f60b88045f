"""A network config that is invalid at the start: one line for each cause; flannelpy uses a valid one at once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import pytest
from lab import ETCD_PREFIX, Daemon, Lab, wait_for
from support.bad_configs import BAD_CONFIGS

pytestmark = pytest.mark.usefixtures("root")

KEY = f"{ETCD_PREFIX}/config"
COMPLAINT = r"^E\d{4} [0-9:.]{15} \d{5,} \w+\.py:\d+\] Failed to retrieve network config: (.*)$"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(hosts=1) as lab:
        yield lab


class Waiting:
    """A daemon that waits for its config, and its complaints so far."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.complaints: list[str] = []

    def complains(self, message: str) -> None:
        """Assert that the daemon logs ``message`` next, and nothing else."""
        self.complaints.append(message)
        wait_for(lambda: len(self._logged()) >= len(self.complaints), 10, message)
        assert self._logged() == self.complaints

    def _logged(self) -> list[str]:
        return re.findall(COMPLAINT, self.daemon.log(), re.MULTILINE)


def test_each_kind_is_logged_once_and_the_daemon_waits_for_another_config(lab: Lab) -> None:
    # The daemon looks once a second, so every second kind; unit/leasing/test_config.py has all.
    some = list(BAD_CONFIGS.values())[1::2]
    assert len(some) >= 20
    assert all(one.message != other.message for one, other in pairwise(some))
    waiting = Waiting(lab.hosts[0].start_daemon("-iface=eth1", "-etcd-api=2"))
    waiting.complains(f"{KEY}: Key not found (/coreos.com)")
    for bad in some:
        lab.put_config(bad.text)
        waiting.complains(bad.message)

    # Values that only a store can hold.
    lab.etcd_request("PUT", f"{KEY}?value=%FF%FE")
    waiting.complains("network config is not JSON: Expecting value at line 1 column 1")
    lab.etcd_request("PUT", f"{KEY}?dir=true")
    waiting.complains(f"{KEY} is a directory instead of the network config")
    lab.etcd_request("DELETE", f"{KEY}?dir=true")
    waiting.complains(f"{KEY}: Key not found ({KEY})")

    log = waiting.daemon.log()
    assert waiting.daemon.process.poll() is None
    assert "Traceback" not in log
    assert len(log.splitlines()) == 3 + len(waiting.complaints)  # and no second line
    lab.put_config()
    waiting.daemon.wait_ready()
    assert waiting.daemon.stop() == 0
