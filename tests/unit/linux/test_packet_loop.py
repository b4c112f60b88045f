"""The event loop whose packet path takes a shorter way: it must not starve asyncio, nor asyncio it."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from contextlib import closing
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING

import pytest

from flannelpy.linux import packet_loop
from flannelpy.linux.packet_loop import PacketLoop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

DEADLINE = 10


class Pipe:
    """A descriptor that is readable as long as ``filled`` was called more often than ``emptied``."""

    def __init__(self) -> None:
        self.fd, self._end = os.pipe2(os.O_NONBLOCK)
        self.calls = 0
        self.fresh: list[bool] = []

    def fill(self) -> None:
        os.write(self._end, b"x")

    def take(self, fresh: bool) -> bool:
        """A handler that does its work and has nothing for asyncio."""
        self.fresh.append(fresh)
        self.calls += 1
        os.read(self.fd, 1)
        return False

    def look(self, fresh: bool) -> bool:
        """A handler that never gets its work done."""
        self.calls += 1
        assert self.calls < 1_000_000, "asyncio does not run"
        return False

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._end)


def play(scenario: Callable[[PacketLoop, Pipe], Awaitable[None]]) -> None:
    async def whole() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, PacketLoop)
        with closing(Pipe()) as pipe:
            async with asyncio.timeout(DEADLINE):
                await scenario(loop, pipe)
            loop.remove_packet_reader(pipe.fd)

    packet_loop.run(whole())


def test_run_gives_the_result_and_lets_errors_through() -> None:
    async def result() -> int:
        return 7

    async def failure() -> None:
        raise KeyError("lost")

    assert packet_loop.run(result()) == 7
    with pytest.raises(KeyError, match="lost"):
        packet_loop.run(failure())


def test_a_handler_is_called_while_asyncio_has_nothing_to_do() -> None:
    async def scenario(loop: PacketLoop, pipe: Pipe) -> None:
        done = loop.create_future()

        def third_time(fresh: bool) -> bool:
            pipe.take(fresh)
            pipe.fill()
            if pipe.calls == 3:
                done.set_result(pipe.calls)
            return pipe.calls == 3

        loop.add_packet_reader(pipe.fd, third_time)
        pipe.fill()
        assert await done == 3
        assert pipe.fresh == [True, False, False]

    play(scenario)


def test_a_handler_learns_whether_the_last_round_called_it() -> None:
    async def scenario(loop: PacketLoop, pipe: Pipe) -> None:
        done = loop.create_future()

        def twice(fresh: bool) -> bool:
            pipe.take(fresh)
            if pipe.calls == 1:
                pipe.fill()
                return False
            done.set_result(None)
            return True

        loop.add_packet_reader(pipe.fd, twice)
        thread = threading.Timer(0.001, pipe.fill)
        thread.start()
        await done
        thread.join()
        assert pipe.fresh == [True, False]

    play(scenario)


def test_timers_and_other_descriptors_are_served_under_a_flood() -> None:
    async def scenario(loop: PacketLoop, pipe: Pipe) -> None:
        one, other = socket.socketpair()
        with one, other:
            one.setblocking(False)
            loop.add_packet_reader(pipe.fd, pipe.look)
            pipe.fill()
            other.send(b"hello")
            assert await loop.sock_recv(one, 10) == b"hello"
            due = asyncio.Event()
            loop.call_later(0.001, due.set)
            await due.wait()
        assert pipe.calls > 2

    play(scenario)


def test_a_thread_can_wake_it_up() -> None:
    async def scenario(loop: PacketLoop, pipe: Pipe) -> None:
        woken = asyncio.Event()
        loop.add_packet_reader(pipe.fd, pipe.look)
        thread = threading.Thread(target=loop.call_soon_threadsafe, args=(woken.set,))
        thread.start()
        await woken.wait()
        thread.join()
        assert await asyncio.to_thread(lambda: 7) == 7
        assert pipe.calls == 0

    play(scenario)


def test_a_removed_reader_is_not_called_again() -> None:
    async def scenario(loop: PacketLoop, pipe: Pipe) -> None:
        with closing(Pipe()) as other:

            def desert_both(fresh: bool) -> bool:
                loop.remove_packet_reader(pipe.fd)
                loop.remove_packet_reader(other.fd)
                pipe.calls += 1
                return False

            loop.add_packet_reader(pipe.fd, desert_both)
            loop.add_packet_reader(other.fd, desert_both)
            for end in (pipe, other):
                end.fill()
            for _ in range(5):
                await asyncio.sleep(0)
            assert pipe.calls == 1
            loop.remove_packet_reader(pipe.fd)

    play(scenario)


def test_a_removed_reader_can_be_added_again() -> None:
    async def scenario(loop: PacketLoop, pipe: Pipe) -> None:
        for times in (1, 2):
            loop.add_packet_reader(pipe.fd, pipe.take)
            pipe.fill()
            while pipe.calls < times:  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0)
            loop.remove_packet_reader(pipe.fd)

    play(scenario)


def test_a_handler_runs_in_the_context_in_which_it_was_added() -> None:
    """So that what it logs names its network."""
    name: ContextVar[str] = ContextVar("name", default="")
    seen: list[str] = []

    async def scenario(loop: PacketLoop, pipe: Pipe) -> None:
        with closing(Pipe()) as other:

            def take(which: Pipe, fresh: bool) -> bool:
                seen.append(name.get())
                return which.take(fresh)

            for value, which in (("blue", pipe), ("green", other)):
                name.set(value)
                loop.add_packet_reader(which.fd, partial(take, which))
            name.set("of this task")
            for which in (pipe, other):
                which.fill()
                while not which.calls:  # noqa: ASYNC110 - what is waited for has no event
                    await asyncio.sleep(0)
            loop.remove_packet_reader(other.fd)
            assert name.get() == "of this task"

    play(scenario)
    assert seen == ["blue", "green"]
