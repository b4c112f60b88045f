"""Measures flannelpy on hosts in network namespaces: ``make bench``.

start-up   from exec to a written subnet file, with a local etcd and an existing config
"""

from __future__ import annotations

import statistics
import time

from lab import Host, Lab, wait_for

ROUNDS = 10
START_UP_BAR = 0.6


def start_up_seconds(host: Host) -> float:
    """One start of the daemon on a host that has no subnet file."""
    file = host.run_dir / "flannel/subnet.env"
    file.unlink(missing_ok=True)
    began = time.monotonic()
    daemon = host.start_daemon("-iface=eth1")
    wait_for(file.exists, 10, "the subnet file")
    seconds = time.monotonic() - began
    daemon.wait_ready()
    daemon.stop()
    return seconds


def main() -> None:
    """Measure, print, and fail when the bar is missed."""
    with Lab(hosts=1) as lab:
        lab.put_config()
        seconds = [start_up_seconds(lab.hosts[0]) for _ in range(ROUNDS)]
    median = statistics.median(seconds)
    print(
        f"start-up: median {median:.3f} s of {ROUNDS} (min {min(seconds):.3f}, max {max(seconds):.3f}),"
        f" bar {START_UP_BAR} s"
    )
    if median > START_UP_BAR:
        raise SystemExit("start-up: too slow")


if __name__ == "__main__":
    main()
