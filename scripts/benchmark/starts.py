"""What is measured about starts: from exec to the subnet file, and whether the API of etcd matters."""

from __future__ import annotations

import statistics
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lab import Host, Lab, wait_for
from lab.etcd_stores import Api

from benchmark.data_path import Measurement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import ExitStack

    from lab import Daemon

    from benchmark.results import Values

_CONFIG = '{"Network":"11.0.0.0/16"}'
#: The etcd prefixes of two equal networks, by the API in whose store each is.
_PREFIXES = {Api.V2: "/start-v2", Api.V3: "/start-v3"}
_STARTS = 10
_DEADLINE = 60


@dataclass(eq=False)
class Starts:
    """Starts by either API, in a lab of their own."""

    def measurements(self, names: Sequence[str]) -> list[Measurement]:
        """Return the only measurement if flannelpy is one of the contenders ``names``."""
        return [Measurement("start-apis", [name for name in names if name == "flannelpy"], self._by_api, self)]

    def build(self, cleanup: ExitStack) -> None:
        """Set up one host, and one etcd with a network in each store."""
        lab = cleanup.enter_context(Lab(hosts=1, api=Api.V2))
        lab.etcd.v2.put(f"{_PREFIXES[Api.V2]}/config", _CONFIG)
        lab.etcd.v3.put(f"{_PREFIXES[Api.V3]}/config", _CONFIG)
        self._host = lab.hosts[0]

    def _by_api(self, _: str) -> Values:
        """Start by either API in turn, with no flag that names one."""
        seconds: dict[Api, list[float]] = {api: [] for api in _PREFIXES}
        for api, prefix in [*_PREFIXES.items()] * _STARTS:
            seconds[api].append(seconds_to_subnet_file(self._host, prefix))
        medians = {api: statistics.median(values) for api, values in seconds.items()}
        ratio = medians[Api.V3] / medians[Api.V2]
        return {"start-v2": medians[Api.V2], "start-v3": medians[Api.V3], "start-ratio": ratio}


def seconds_to_subnet_file(host: Host, prefix: str, *flags: str, python: str = sys.executable) -> float:
    """Start with an existing config, on a host without a subnet file, with a local etcd; return the seconds to it."""
    file = host.run_dir / "flannel/subnet.env"
    file.unlink(missing_ok=True)
    began = time.monotonic()
    with running_daemon(host, prefix, *flags, python=python):
        return seconds_until(file.exists, began)


@contextmanager
def running_daemon(host: Host, prefix: str, *flags: str, python: str = sys.executable) -> Iterator[Daemon]:
    """Return a daemon that is stopped at the end, and not before it is ready; its device goes, too."""
    daemon = host.start_daemon("-iface=eth1", f"-etcd-prefix={prefix}", *flags, python=python)
    try:
        yield daemon
        daemon.wait_ready(_DEADLINE)
    finally:
        daemon.stop()
        host.run("ip", "link", "delete", "flannel.1", check=False)  # vxlan leaves it, on purpose


def seconds_until(condition: Callable[[], bool], began: float) -> float:
    """Return the time from ``began`` until the condition holds.  Raises TimeoutError."""
    wait_for(condition, _DEADLINE, "the daemon", pause=0.001)
    return time.monotonic() - began
