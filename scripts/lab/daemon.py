"""A flannelpy that runs on a host of the lab."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from lab.namespaces import undisturbed, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from ipaddress import IPv4Network
    from pathlib import Path

    from lab.machines import Host

# With this many peers or more, the daemon may log only their number.
_LOGGED_PEERS = 20
# Alone, a start takes half a second; while many tests start daemons at once, it has taken ten.
_START_SECONDS = 30

T = TypeVar("T")


class Daemon:
    """One run of flannelpy on a host.  The lab is its systemd: it listens on NOTIFY_SOCKET."""

    def __init__(self, host: Host, flags: Sequence[str], env: Mapping[str, str], endpoints: str, python: str) -> None:
        self.host = host
        self._log_start = host.log_file.stat().st_size if host.log_file.exists() else 0
        self.notified: list[str] = []  # the lines that systemd would have received, such as READY=1
        self._notify = _listen(host.run_dir / "notify", self.notified)
        argv = [python, "-P", "-m", "flannelpy"]  # -P: what that Python has installed, not what lies where we are
        if endpoints:
            argv.append(f"-etcd-endpoints={endpoints}")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FLANNELD_")}
        with host.log_file.open("a") as log:
            self.process = host.popen(
                *argv,
                *flags,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**inherited, "NOTIFY_SOCKET": "/run/notify", "FLANNELD_HOST_ID": host.name, **env},
            )
        self.pid = self.process.pid
        by_flag = [flag.partition("=")[2] for flag in flags if flag.startswith("-datapath=")]
        self._datapath = [env.get("FLANNELD_DATAPATH", "loop"), *by_flag][-1]

    def log(self) -> str:
        """Return the lines that this run has logged so far; of a line that is being written, nothing."""
        logged = self.host.log_file.read_bytes()[self._log_start :]
        return logged[: logged.rfind(b"\n") + 1].decode(errors="replace")

    def wait_for_log(self, pattern: str, deadline: float = 10) -> re.Match[str]:
        """Return the first match in the log.  Raises TimeoutError, RuntimeError when the daemon ends without it."""
        return self._wait_for(lambda: re.search(pattern, self.log(), re.MULTILINE), deadline, f"{pattern!r} in the log")

    def wait_for_peer(self, subnet: IPv4Network, deadline: float = _START_SECONDS) -> None:
        """Return when the daemon forwards packets to a peer's subnet.  Raises as ``wait_for_log`` does.

        The log names only some of many peers; for the others, the peer's tunnel address must answer.
        """
        line = re.compile(rf"Subnet added: {re.escape(str(subnet))}( via \S+)?$", re.MULTILINE)

        def is_known() -> bool:
            log = self.log()
            return bool(line.search(log)) or (log.count("Subnet added: ") >= _LOGGED_PEERS and self._reaches(subnet))

        self._wait_for(is_known, deadline, f"the peer {subnet}")

    def _reaches(self, subnet: IPv4Network) -> bool:
        return not self.host.run("ping", "-c1", "-W1", str(subnet.network_address), check=False).returncode

    def wait_ready(self, deadline: float = _START_SECONDS) -> None:
        """Return when the subnet file is written and the data path runs.  Raises as wait_for_log does."""
        self._wait_for(lambda: "READY=1" in self.notified, deadline, "READY=1")

    def wait_for_datapath(self, deadline: float = _START_SECONDS) -> None:
        """With udp, return when packets to peers pass the datapath that the flags choose, not the loop meanwhile.

        Raises as ``wait_for_log`` does.
        """
        if self._datapath != "loop" and "Packet code " in self.log():
            chosen = "kernel" if self._datapath == "kernel" else "(kernel|loop|switched)"
            self.wait_for_log(f"Datapath {chosen}", deadline)

    def _wait_for(self, condition: Callable[[], T | None], deadline: float, what: str) -> T:
        def met_or_hopeless() -> T | None:
            ended = self.process.poll()  # asked first: what it did last must not be missed
            value = condition()
            if not value and ended is not None:
                raise RuntimeError(f"flannelpy on {self.host.name} ended with {ended}, without {what}")
            return value

        try:
            return wait_for(met_or_hopeless, deadline, f"{what} from {self.host.name}")
        except (TimeoutError, RuntimeError) as error:
            error.add_note(self.log())
            raise

    def stop(self, deadline: float = 10) -> int:
        """Ask the daemon to stop (SIGTERM).  Returns its exit code.  Raises subprocess.TimeoutExpired."""
        return self._end(signal.SIGTERM, deadline)

    def kill(self) -> None:
        """End the daemon without giving it a chance to clean up (SIGKILL)."""
        self._end(signal.SIGKILL, 10)

    def _end(self, signal_number: int, deadline: float) -> int:
        self.process.send_signal(signal_number)
        code = self.process.wait(deadline)
        self.close()
        return code

    def close(self) -> None:
        """Stop listening to the daemon."""
        with suppress(OSError):  # it may be closed already
            self._notify.shutdown(socket.SHUT_RD)
        self._notify.close()


def _listen(path: Path, lines: list[str]) -> socket.socket:
    """Return a NOTIFY_SOCKET at ``path`` that appends its messages to ``lines`` until it is shut down."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(path))
    path.chmod(0o777)  # as systemd's, for daemons that are not root

    def read() -> None:
        with suppress(OSError):  # the socket was closed before the thread came to receive again
            while message := listener.recv(65536):
                lines.extend(message.decode().splitlines())

    with undisturbed():  # the thread inherits this: signals are for the main thread
        threading.Thread(target=read, daemon=True).start()
    return listener
