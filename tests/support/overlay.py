"""Traffic on a lab's overlay, for tests: starts netns/traffic.py and tcpdump in its namespaces."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import IO, Self

from lab import Container, Node, wait_for
from lab.dockers import DockerContainer

from flannelpy.datapath.offloads import Offload

_TRAFFIC = str(Path(__file__).parents[1] / "netns" / "traffic.py")
OUTER_PORT = 8285
_PACKET_SECONDS = 20


def all_but(missing: Offload) -> str:
    """The value of -offload that leaves one out."""
    return ",".join(offload for offload in Offload if offload is not missing)


@contextmanager
def listening(node: Node, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A traffic command that has begun to listen; it is killed in the end."""
    with running(node, *arguments) as process:
        assert _output(process.stdout).readline() == "listening\n"
        yield process


@contextmanager
def running(node: Node, *arguments: str, stdin: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[str]]:
    """A traffic command that is killed in the end."""
    with node.popen(sys.executable, _TRAFFIC, *arguments, stdin=stdin) as process:
        try:
            yield process
        finally:
            process.kill()


def traffic(node: Node, *arguments: str, timeout: float = 120) -> str:
    """What a traffic command prints in the end."""
    return node.run(sys.executable, _TRAFFIC, *arguments, timeout=timeout).stdout


def transfer(source: Node, sink: Node, address: str, size: int, timeout: float = 120) -> None:
    """Send ``size`` bytes over TCP; they must arrive as they were sent."""
    with listening(sink, "tcp-sink", "5001") as receiver:
        sent = traffic(source, "tcp-source", address, "5001", str(size), timeout=timeout)
        received, _ = receiver.communicate(timeout=10)
    assert received == sent
    assert sent.split()[1] == str(size)


def throughput(one: Container, other: Container, seconds: float = 2, streams: int = 1) -> float:
    """Bits per second of TCP streams, together."""
    server = other.popen("iperf3", "-s", "-1", "--forceflush")
    while "listening" not in (line := _output(server.stdout).readline()):
        assert line, "iperf3 has ended"
    report = json.loads(one.run("iperf3", "-c", str(other.address), f"-t{seconds:g}", f"-P{streams}", "-J").stdout)
    server.communicate(timeout=20)
    return float(report["end"]["sum_received"]["bits_per_second"])


class Stream:
    """A TCP connection on which bytes flow."""

    def __init__(self, sink: subprocess.Popen[str]) -> None:
        # Read where it costs no process: /proc/PID/net/dev is of that process's network namespace.
        self._counters = Path(f"/proc/{sink.pid}/net/dev")

    def received(self) -> int:
        """Bytes that have reached the container so far, with headers."""
        [count] = re.findall(r"^ *eth0: *(\d+)", self._counters.read_text(), re.MULTILINE)
        return int(count)

    def wait_for_more(self, size: int = 1 << 20, deadline: float = 10) -> None:
        """Return when so many more bytes have come."""
        end = self.received() + size
        wait_for(lambda: self.received() > end, deadline, f"{size} bytes on a stream")


@contextmanager
def unbroken_stream(
    source: Container | DockerContainer, sink: Container | DockerContainer, rate: int
) -> Iterator[Stream]:
    """So many bytes a second over one connection until the block ends; all must have arrived as they were sent."""
    with (
        listening(sink, "tcp-sink", "5001") as receiver,
        running(source, "tcp-stream", str(sink.address), "5001", str(rate), stdin=subprocess.PIPE) as sender,
    ):
        stream = Stream(receiver)
        stream.wait_for_more()
        yield stream
        sent, _ = sender.communicate(timeout=60)
        received, _ = receiver.communicate(timeout=60)
    assert received == sent
    assert int(sent.split()[1]) > 0


class Capture:
    """A tcpdump that is listening: ``readline`` is the next packet, or all go to a ``file``.

    ``size``: how much of a frame the file has; 0 for all of it.  ``missed``: how many frames it lacks, in the end.
    """

    def __init__(self, node: Node, device: str, what: str, file: Path | None = None, size: int = 0) -> None:
        to_file = ["-w", str(file), f"-s{size}", "-B", "65536", "-Z", "root"]
        how = ["-l", "--immediate-mode"] if file is None else to_file
        self.missed = 0
        self.process = node.popen("tcpdump", "-n", *how, "-i", device, what)

    def __enter__(self) -> Self:
        while "listening on" not in (line := _output(self.process.stderr).readline()):
            assert line, "tcpdump has ended"
        return self

    def readline(self) -> str:
        """Nothing if no packet comes in time: then tcpdump is killed."""
        timer = Timer(_PACKET_SECONDS, self.process.kill)
        timer.start()
        try:
            return _output(self.process.stdout).readline()
        finally:
            timer.cancel()

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGINT)
        summary = self.process.communicate(timeout=10)[1]
        if found := re.search(r"^(\d+) packets? dropped by kernel", summary, re.MULTILINE):
            self.missed = int(found[1])


def _output(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
