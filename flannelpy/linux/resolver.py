"""IPv4 addresses of names, within a bounded time.

A resolver may take half a minute for an unknown name, so each name gets a daemon thread, which delays neither the event
loop nor the end of the process.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Collection
from contextlib import suppress
from ipaddress import IPv4Address


async def resolve(names: Collection[str], seconds: float) -> dict[str, frozenset[IPv4Address]]:
    """Return the IPv4 addresses of each name or address; none of a name that is not resolved within ``seconds``."""
    loop = asyncio.get_running_loop()
    answers: dict[str, asyncio.Future[frozenset[IPv4Address]]]
    answers = {name: loop.create_future() for name in names}
    for name, answer in answers.items():
        threading.Thread(target=_look_up, args=(name, answer), name="resolver", daemon=True).start()
    if answers:
        await asyncio.wait(answers.values(), timeout=seconds)
    return {name: answer.result() if answer.done() else frozenset() for name, answer in answers.items()}


def _look_up(name: str, answer: asyncio.Future[frozenset[IPv4Address]]) -> None:
    found: frozenset[IPv4Address] = frozenset()
    with suppress(OSError, UnicodeError):
        infos = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
        found = frozenset(IPv4Address(info[4][0]) for info in infos)
    with suppress(RuntimeError):  # the loop is closed, no task waits for the answer
        answer.get_loop().call_soon_threadsafe(_settle, answer, found)


def _settle(answer: asyncio.Future[frozenset[IPv4Address]], found: frozenset[IPv4Address]) -> None:
    if not answer.done():
        answer.set_result(found)
