"""A daemon's life at random, on a host with state of other programs: that state must not change.

Leases come, change and go; the daemon stops, is killed, starts with another backend and network; -cleanup runs.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable
from contextlib import nullcontext
from ipaddress import IPv4Network
from typing import NamedTuple

from faults.backends import ALLOC, HOST_GW, UDP, VXLAN, Backend
from lab import ETCD_PREFIX, Daemon, Lab, wait_for
from support.foreign_state import Operator, Snapshot, added, missing, snapshot, with_additions
from support.hosts import asleep

BACKENDS = (UDP, VXLAN, HOST_GW, ALLOC)
MASQUERADE = "-ip-masq"
_PATIENCE = 15


class Plan(NamedTuple):
    """One network, and the subnet in it that is reserved for the host."""

    network: IPv4Network
    own: IPv4Network
    bounds: dict[str, object]

    def config(self, backend: Backend) -> str:
        return json.dumps({"Network": str(self.network), "Backend": {"Type": backend.name}, **self.bounds})

    def subnet(self, number: int) -> IPv4Network:
        """One that others may lease."""
        return IPv4Network((int(self.own.network_address) + (number + 1) * self.own.num_addresses, self.own.prefixlen))


PLANS = (
    Plan(IPv4Network("11.0.0.0/16"), IPv4Network("11.0.49.0/24"), {}),
    Plan(
        IPv4Network("10.0.0.0/8"),
        IPv4Network("10.20.0.0/16"),
        {"SubnetLen": 16, "SubnetMin": "10.10.0.0", "SubnetMax": "10.99.0.0"},
    ),
    Plan(IPv4Network("11.64.0.0/12"), IPv4Network("11.66.4.0/22"), {"SubnetLen": 22}),
)


class Life:
    """Of one host of a lab that has no other: the other hosts are leases."""

    def __init__(self, lab: Lab, rng: random.Random) -> None:
        self._lab = lab
        [self._host] = lab.hosts
        self._rng = rng
        self._plan = PLANS[0]
        self._backend: Backend = UDP
        self._flags: list[str] = []
        self._daemon: Daemon | None = None
        self._leases: dict[str, dict[str, str]] = {name: {} for name in ("", "blue", "green")}
        self._markers = 0
        networks = [plan.network for plan in PLANS]
        self._operator = Operator(self._host, rng, networks, [plan.own for plan in PLANS])
        self._host.run("mkdir", "-p", "/run/flannel")
        self._host.run("sh", "-c", "echo FLANNEL_NETWORK=10.77.0.0/16 > /run/flannel/operator.env")
        self._host.run("nft", "-f", "-", input="add table inet operator; add chain inet operator FLANNEL;", check=False)
        self._operator.settle_in()
        self._foreign: Snapshot = snapshot(self._host)

    def run(self) -> None:
        """Every backend twice, in any order; in the end, nothing of the daemon is left."""
        for backend in self._rng.sample(BACKENDS * 2, 2 * len(BACKENDS)):
            self._start(backend)
            for step in self._rng.sample((self._churn, self._operate, self._reconfigure), 2):
                step()
                self._check(step.__name__)
            self._end()
        self._leave()

    # Steps

    def _start(self, backend: Backend) -> None:
        self._backend = backend
        self._plan = self._rng.choice(PLANS)
        names = ("blue", "green") if self._rng.random() < 0.2 else ("",)
        self._flags = [f"-networks={','.join(names)}"] if names[0] else []
        for name, plan, kind in zip(names, (self._plan, PLANS[0]), (backend, HOST_GW), strict=False):
            if name == "green" and self._plan is plan:
                plan, kind = PLANS[2], HOST_GW
            self._put(f"{self._prefix(name)}/config", plan.config(kind))
            key = f"{self._prefix(name)}/subnets/{_text(plan.own)}"
            self._put(key, json.dumps({"PublicIP": str(self._host.public_ip)}))
        flags = ["-iface=eth1", *self._flags, *self._rng.choice(([], [MASQUERADE]))]
        self._tell(f"start {backend} on {self._plan.network} {' '.join(flags)}")
        self._daemon = self._host.start_daemon(*flags)
        self._settle(self._daemon)
        self._tell("ready" if "READY=1" in self._daemon.notified else self._daemon.log().splitlines()[-1])
        self._check("start")

    def _settle(self, daemon: Daemon) -> None:
        """Return when it is ready, or has logged why not."""
        wait_for(
            lambda: (
                "READY=1" in daemon.notified
                or daemon.process.poll() is not None
                or any(map(_is_failure, daemon.log().splitlines()))
                or any("not ready" in line for line in list(daemon.notified))
            ),
            _PATIENCE,
            f"the daemon to be ready or to log why not:\n{daemon.log()}",
        )

    def _churn(self) -> None:
        """Leases come, get another public IP or MAC, and go; return when the daemon has seen it."""
        name = "blue" if self._flags else ""
        leases = self._leases[name]
        for _ in range(self._rng.randrange(3, 12)):
            key = f"{self._prefix(name)}/subnets/{_text(self._plan.subnet(self._rng.randrange(30)))}"
            if key in leases and self._rng.random() < 0.5:
                del leases[key]
                self._lab.etcd.delete(key)
            else:
                leases[key] = self._lease()
                self._put(key, leases[key])
        self._markers += 1
        marker = self._plan.subnet(31 + self._markers % 30)
        self._put(f"{self._prefix(name)}/subnets/{_text(marker)}", self._lease())
        if self._backend is not ALLOC:
            self._wait_while_it_is_ready(lambda daemon: str(marker) in daemon.log())

    def _operate(self) -> None:
        """An operator adds state while the daemon is there, asleep, so that all that comes is the operator's."""
        running = self._daemon and self._daemon.process.poll() is None
        with asleep(self._daemon) if self._daemon and running else nullcontext():
            before = snapshot(self._host)
            self._operator.add(15)
            self._foreign = with_additions(self._foreign, before, snapshot(self._host))
        self._churn()

    def _reconfigure(self) -> None:
        """The config in etcd changes under the daemon, which keeps what it has."""
        name = "blue" if self._flags else ""
        self._put(f"{self._prefix(name)}/config", self._rng.choice(PLANS).config(self._rng.choice(BACKENDS)))

    def _end(self) -> None:
        daemon = self._daemon
        assert daemon
        self._daemon = None
        end = self._rng.choice(("stop", "kill"))
        self._tell(end)
        if daemon.process.poll() is None:
            (daemon.stop if end == "stop" else daemon.kill)()
        else:
            assert daemon.process.returncode == 1, daemon.log()
            assert daemon.log().splitlines()[-1].startswith("E"), daemon.log()
            daemon.close()
        self._check(end)
        if self._rng.random() < 0.3:
            self._clean_up(*self._flags)

    def _leave(self) -> None:
        """Nothing of the daemon is left after -cleanup of all that it was."""
        self._clean_up("-networks=blue,green")
        self._clean_up()
        now = snapshot(self._host)
        assert added(self._foreign, now) == []
        assert missing(self._foreign, now) == []

    def _clean_up(self, *flags: str) -> None:
        argv = [sys.executable, "-P", "-m", "flannelpy", f"-etcd-endpoints={self._lab.etcd.url}", *flags, "-cleanup"]
        done = self._host.run(*argv, check=False)
        self._tell(f"cleanup {' '.join(flags)}\n{done.stderr}")
        assert done.returncode == 0, done.stderr
        self._check("cleanup")

    # Helpers

    def _check(self, after: str) -> None:
        """Check that the foreign state is unchanged."""
        log = self._daemon.log() if self._daemon else ""
        assert "Traceback" not in log, log
        assert missing(self._foreign, snapshot(self._host)) == [], f"after {after}\n{log}"

    def _wait_while_it_is_ready(self, condition: Callable[[Daemon], object]) -> None:
        daemon = self._daemon
        assert daemon
        wait_for(
            lambda: daemon.process.poll() is not None or "READY=1" not in daemon.notified or condition(daemon),
            _PATIENCE,
            f"the daemon to see the leases:\n{daemon.log()}",
        )

    def _lease(self) -> str:
        mac = "02:00:00:01:" + ":".join(f"{byte:02x}" for byte in self._rng.randbytes(2))
        return self._backend.lease(f"172.17.8.{self._rng.randrange(130, 250)}", mac)

    def _prefix(self, name: str) -> str:
        return f"{ETCD_PREFIX}/{name}" if name else ETCD_PREFIX

    def _put(self, key: str, value: str) -> None:
        self._lab.etcd.put(key, value)

    def _tell(self, text: str) -> None:
        print(text, flush=True)


def _text(subnet: IPv4Network) -> str:
    return str(subnet).replace("/", "-")


def live(lab: Lab, seed: int) -> None:
    """A whole life, which the seed determines but for what the daemon and the kernel do."""
    print(f"FLANNELPY_SEED={seed}")
    Life(lab, random.Random(seed)).run()


def _is_failure(line: str) -> bool:
    """Whether the daemon logged why it is not ready, and continues; the last line before an exit does not count."""
    is_error = re.match(r"E\d{4} ", line) is not None
    return is_error and (" daemon.py:" not in line or "; trying again in " in line)
