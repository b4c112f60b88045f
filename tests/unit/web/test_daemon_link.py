"""Questions of the HTTP process and the daemon's answers, over a pair of sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from ipaddress import IPv4Address, IPv4Network

import pytest

from flannelpy.errors import DaemonUnavailable
from flannelpy.report import DaemonReport, NetworkReport, NetworkState, PeerReport
from flannelpy.serving import wire
from flannelpy.web import process
from flannelpy.web.daemon_link import DaemonLink

REPORT = DaemonReport((NetworkReport("", NetworkState.READY),), "1.0.0", 17)
PEERS = tuple(PeerReport(IPv4Network(f"11.0.{n}.0/24"), IPv4Address(f"172.17.8.{n}"), 1000.0) for n in range(1, 4))
PEER_LINES = [wire.part_line(wire.Peers("", (peer,))) for peer in PEERS]
END = wire.part_line(wire.End())


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_ANSWER_PAUSE", 0.0)


async def honest(request: wire.Request) -> AsyncIterator[bytes]:
    assert isinstance(request, wire.GetReport)
    yield wire.part_line(REPORT)
    for line in PEER_LINES if request.with_peers else ():
        yield line
    yield END


def lines(*answer: bytes) -> process.Answer:
    """Return a daemon that answers these lines, and then honestly."""
    first = [answer]

    async def answer_lines(request: wire.Request) -> AsyncIterator[bytes]:
        if first:
            for line in first.pop():
                yield line
        else:
            async for line in honest(request):
                yield line

    return answer_lines


async def asked(answer: process.Answer, *questions: bool) -> Sequence[wire.Answer | BaseException]:
    """Return the results of questions, asked all at once."""
    ours, theirs = socket.socketpair()
    answering = asyncio.create_task(process.answer_questions(ours, answer))
    link = await DaemonLink.over(theirs)
    with closing(link):
        results = await asyncio.gather(*(link.ask(with_peers=each) for each in questions), return_exceptions=True)
    await answering  # it ends with the connection
    return results


def test_report_and_peers() -> None:
    without, whole = asyncio.run(asked(honest, False, True))
    assert without == wire.Answer(REPORT, {})
    assert whole == wire.Answer(REPORT, {"": list(PEERS)})


@pytest.mark.parametrize(
    "answer",
    [
        (END,),
        (b"nonsense\n", END),
        (b'{"report": {"schema": 99}}\n', END),
        (wire.part_line(REPORT), b"{}\n", *PEER_LINES, END),
        (wire.part_line(wire.Refusal("no")),),
    ],
)
def test_after_an_answer_that_cannot_be_read_the_next_one_is_read(answer: tuple[bytes, ...]) -> None:
    bad, good = asyncio.run(asked(lines(*answer), True, True))
    assert isinstance(bad, DaemonUnavailable)
    assert good == wire.Answer(REPORT, {"": list(PEERS)})


def test_when_the_daemon_closes_the_connection_the_process_ends() -> None:
    async def ask() -> None:
        ours, theirs = socket.socketpair()
        ours.close()
        with closing(await DaemonLink.over(theirs)) as link:
            await link.ask(with_peers=False)

    with pytest.raises((SystemExit, ConnectionError)):
        asyncio.run(ask())


@pytest.mark.parametrize(
    "request_line", [b'{"set": "log-level", "value": 1}\n', b"nonsense\n", b"\n", b"x" * 100_000, b'{"get": "report"']
)
def test_a_process_that_asks_for_anything_else_is_answered_no_more(request_line: bytes) -> None:
    async def never(request: wire.Request) -> AsyncIterator[bytes]:
        raise AssertionError(request)
        yield b""

    async def ask() -> bytes:
        ours, theirs = socket.socketpair()
        answering = asyncio.create_task(process.answer_questions(ours, never))
        reader, writer = await asyncio.open_unix_connection(sock=theirs)
        writer.write(request_line)
        writer.write_eof()
        await answering
        try:
            return await reader.read()
        except ConnectionError:  # not all of it was read
            return b""
        finally:
            writer.close()

    assert asyncio.run(ask()) == b""
