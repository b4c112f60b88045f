"""etcd, alone or as a member of a cluster, for the tests, the lab and the demo."""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from lab.etcd_http import EtcdHttp
from lab.etcd_metrics import calls
from lab.etcd_stores import Api, Key, Store, V2Store, V3Store
from lab.namespaces import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

READY_LINE = b"ready to serve client requests"
START_DEADLINE = 20.0  # seconds
STOP_DEADLINE = 10.0
_FIRST_PORT, _FIRST_EPHEMERAL_PORT = 10000, 32768  # net.ipv4.ip_local_port_range
_BLOCK = 256  # ports of one process


class ServerTls(NamedTuple):
    """Certificate files of the server; with ``client_ca`` clients must show a certificate signed by it."""

    certfile: Path
    keyfile: Path
    client_ca: Path | None = None


class EtcdServer:
    """A member of a cluster that keeps its data and its log in ``directory``.

    It listens on ``host`` inside the network namespace ``netns`` (None: ours), on a free port if none is given.  Ports
    and data outlive ``stop`` and ``kill``, so ``start`` brings the same member back.  ``peers`` are the URLs by which
    all members, this one included, reach each other; without it the cluster has one member.

    ``api`` is the API whose store ``put``, ``put_all``, ``delete`` and ``list`` use; the v3 API is always served, the
    v2 API if ``v2`` (None: if ``api`` is V2).  ``v2`` and ``v3`` are the two stores.
    """

    def __init__(
        self,
        directory: Path,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        netns: str | None = None,
        api: Api = Api.V2,
        v2: bool | None = None,
        tls: ServerTls | None = None,
        name: str = "default",
        peers: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.log = directory / "etcd.log"
        self._data = directory / "data"
        client_port, peer_port = free_ports(2)
        peers = peers or {name: f"http://127.0.0.1:{peer_port}"}
        self._peer_url = peers[name]
        self._address = (host, port or client_port)
        http = EtcdHttp(self._address, netns)
        self._http = http
        self.v2, self.v3 = V2Store(http), V3Store(http)
        self._store: Store = self.v2 if api is Api.V2 else self.v3
        self.url = f"{'https' if tls else 'http'}://{host}:{port or client_port}"
        self._command = [
            *(["ip", "netns", "exec", netns] if netns else []),
            *["etcd", f"--name={name}", f"--data-dir={self._data}"],
            "--bcrypt-cost=4",  # the least: only tests have passwords, and etcd hashes them again and again
            *(["--enable-v2=true"] if (api is Api.V2 if v2 is None else v2) else []),
            *_addresses(self.url, self._peer_url, peers),
            *_tls_arguments(tls),
            *arguments,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start and wait until requests are served.  Raises RuntimeError with the end of the log."""
        with ExitStack() as undo:
            self.launch()
            undo.callback(self.kill)
            self.wait_until_ready()
            undo.pop_all()

    def launch(self, *arguments: str) -> None:
        """Start and wait for nothing: a member serves no requests before a majority of its cluster runs."""
        assert self._process is None, "already started"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            # In a session of its own: neither Ctrl-C nor the end of a terminal is meant for it.
            self._process = subprocess.Popen(
                [*self._command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Return when requests are served.  Raises RuntimeError with the end of the log."""
        # Read the log: a connection would have to cross into another namespace, or use TLS.
        process = self._running()
        deadline = time.monotonic() + START_DEADLINE
        while READY_LINE not in (log := self.log.read_bytes()):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"etcd did not start:\n{log[-2000:].decode(errors='replace')}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End it in an orderly way, by force after a while; nothing happens if it does not run."""
        if self._process is None:
            return
        self.resume()
        self._process.terminate()
        try:
            self._process.wait(STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Freeze it: connections are still accepted, by the kernel, and nothing is answered."""
        process = self._signal(signal.SIGSTOP)
        # Its threads stop one after the other, and until then some still answer.
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Resume the server after ``pause``."""
        self._signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Lose all data; only while it does not run."""
        assert self._process is None, "still running"
        shutil.rmtree(self._data)

    def save(self, copy: Path) -> None:
        """Copy the data to a new directory; only while it does not run."""
        assert self._process is None, "still running"
        shutil.copytree(self._data, copy)

    def restore(self, copy: Path) -> None:
        """Have the data that ``save`` has copied; only while it does not run."""
        self.wipe()
        shutil.copytree(copy, self._data)

    def rejoin(self, cluster: EtcdServer) -> None:
        """Start without data, as the new member that ``cluster``, another member, takes for the old one."""
        wait_for(lambda: self._is_replaced_in(cluster), 60, "the new member")
        self.wipe()
        self.launch("--initial-cluster-state=existing")
        self.wait_until_ready()

    def _is_replaced_in(self, cluster: EtcdServer) -> bool:
        """Replace the member by a new one; return whether that succeeded, since a change of the leader may lose it."""
        members = cluster.v3.call("cluster/member/list")["members"]
        ours = [member for member in members if member["peerURLs"] == [self._peer_url]]
        try:
            for old in (member for member in ours if member.get("name")):
                cluster.v3.call("cluster/member/remove", ID=old["ID"])
            if all(member.get("name") for member in ours):
                cluster.v3.call("cluster/member/add", peerURLs=[self._peer_url])
        except OSError:
            return False
        return True

    def is_leader(self) -> bool:
        """Whether it leads its cluster."""
        status = self.v3.call("maintenance/status")
        return bool(status["header"]["member_id"] == status.get("leader"))

    def put(self, key: str, value: str, ttl: int | None = None) -> None:
        """Store ``value``, over any earlier one, as ``etcdctl set`` or ``etcdctl put`` does."""
        self._store.put(key, value, ttl)

    def put_all(self, values: Mapping[str, str], ttl: int) -> None:
        """Store many values, several at a time."""
        self._store.put_all(values, ttl)

    def delete(self, key: str) -> None:
        """Remove a key, or a directory with everything in it."""
        self._store.delete(key)

    def list(self, directory: str) -> tuple[Key, ...]:
        """Return the keys in ``directory``, by name."""
        return self._store.list(directory)

    def request(self, method: str, path: str, form: Mapping[str, str] | None = None, body: str = "") -> Any:
        """One HTTP request without TLS, sent from inside ``netns``.  Raises RefusedError unless it succeeds."""
        return self._http.request(method, path, form, body)

    def metrics(self) -> dict[str, float]:
        """Return the metrics by name and labels, as ``etcd_server_is_leader`` or ``rest_client{code="200"}``."""
        lines = (line for line in self._http.text("/metrics").splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def calls(self) -> dict[str, int]:
        """Return how often each method of the v3 API was called, such as ``Range``, ``Txn`` and ``Watch``."""
        return calls(self.metrics())

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "not started"
        return self._process

    def _signal(self, number: signal.Signals) -> subprocess.Popen[bytes]:
        process = self._running()
        process.send_signal(number)
        return process


def free_ports(count: int) -> list[int]:
    """Return different TCP ports that are free at 127.0.0.1 right now.

    They are none of those that the kernel gives to connections, and no other process of the lab gets them: the clients
    of a server that is down must not meet that of another test.
    """
    return list(itertools.islice(filter(_is_free, _own_ports()), count))


@functools.cache
def _own_ports() -> Iterator[int]:
    """Yield the ports of a block that no other process has, again and again."""
    starts = range(_FIRST_PORT, _FIRST_EPHEMERAL_PORT - _BLOCK, _BLOCK)
    start = next(start for start in random.sample(starts, len(starts)) if _reserve(start))
    return itertools.cycle(range(start, start + _BLOCK))


def _reserve(start: int) -> bool:
    """Return whether the block from ``start`` is ours, until this process ends."""
    reservation = socket.socket(socket.AF_UNIX)
    try:
        reservation.bind(f"\0flannelpy-lab-ports-{start}")
    except OSError:
        reservation.close()
        return False
    atexit.register(reservation.close)
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _addresses(client_url: str, peer_url: str, peers: Mapping[str, str]) -> list[str]:
    return [
        f"--listen-client-urls={client_url}",
        f"--advertise-client-urls={client_url}",
        f"--listen-peer-urls={peer_url}",
        f"--initial-advertise-peer-urls={peer_url}",
        f"--initial-cluster={','.join(f'{name}={url}' for name, url in peers.items())}",
    ]


def _tls_arguments(tls: ServerTls | None) -> list[str]:
    if tls is None:
        return []
    arguments = [f"--cert-file={tls.certfile}", f"--key-file={tls.keyfile}"]
    if tls.client_ca:
        arguments += ["--client-cert-auth", f"--trusted-ca-file={tls.client_ca}"]
    return arguments
