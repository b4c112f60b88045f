"""Other programs write far more to etcd than flannelpy, or an endpoint is too slow."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network

import pytest
from faults.backends import UDP
from lab import Lab
from lab.etcd_stores import Api

pytestmark = [pytest.mark.usefixtures("root"), pytest.mark.parametrize("api", [Api.V3, Api.V2])]

RATE = 150  # writes a second
QUIET_SECONDS = 11  # more than a poll, in which more is written than etcd remembers


@contextmanager
def written_elsewhere(lab: Lab) -> Iterator[None]:
    """Have foreign keys change all the time."""
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            began = time.monotonic()
            lab.etcd.put_all({f"/elsewhere/{number}": "x" for number in range(RATE)}, ttl=600)
            done.wait(max(began + 1 - time.monotonic(), 0))

    writing = threading.Thread(target=write)
    writing.start()
    yield
    done.set()
    writing.join()


def lists(lab: Lab) -> int:
    """Return how often the leases, or the config, were read."""
    return int(lab.etcd.metrics().get('etcd_http_received_total{method="QGET"}', 0)) + lab.etcd.calls()["Range"]


@pytest.fixture
def lab(shared_lab: Callable[[str, int, Api], Lab], api: Api) -> Lab:
    return shared_lab(UDP.config(), 2, api)


DRIP = """
import itertools, socket, threading, time
def drip(client):
    for byte in itertools.cycle(b"HTTP/1.1 200 OK\\r\\nContent-Length: 999999\\r\\n\\r\\n" + b" " * 999):
        client.sendall(bytes([byte]))
        time.sleep(1)
listener = socket.create_server(("172.17.8.1", 4001))
print("listening", flush=True)
while True:
    threading.Thread(target=drip, args=(listener.accept()[0],), daemon=True).start()
"""


def test_an_endpoint_that_sends_a_byte_a_second_is_skipped(lab: Lab) -> None:
    dripping = lab.switch.popen(sys.executable, "-c", DRIP)
    assert dripping.stdout
    assert dripping.stdout.readline() == "listening\n"
    daemon = lab.hosts[1].start_daemon("-iface=eth1", endpoints=f"http://172.17.8.1:4001,{lab.etcd.url}")
    daemon.wait_ready(2 * 4 + 5)  # each store is asked for a config
    lab.etcd.put(*UDP.foreign_lease(IPv4Network("11.0.200.0/24"), 0), ttl=600)
    daemon.wait_for_peer(IPv4Network("11.0.200.0/24"), 2)
    daemon.stop()


def test_foreign_writes_cause_no_list_and_no_log_line_and_hide_no_lease(lab: Lab) -> None:
    daemon = lab.hosts[0].start_daemon("-iface=eth1")
    daemon.wait_ready()
    with written_elsewhere(lab):
        before = lists(lab)
        time.sleep(QUIET_SECONDS)
        assert lists(lab) - before <= 2  # both for the config
        lab.etcd.put(*UDP.foreign_lease(IPv4Network("11.0.201.0/24"), 1), ttl=600)
        daemon.wait_for_peer(IPv4Network("11.0.201.0/24"), 2)
    # During the outage the watch loses its place.
    lab.etcd.stop()
    lab.etcd.start()
    lab.etcd.put(*UDP.foreign_lease(IPv4Network("11.0.202.0/24"), 2), ttl=600)
    lab.etcd.put_all({f"/elsewhere/{number}": "y" for number in range(1100)}, ttl=600)
    daemon.wait_for_peer(IPv4Network("11.0.202.0/24"), 10)
    assert not re.findall(r"^W.*", daemon.log(), re.MULTILINE)
    assert "history" not in daemon.log()
