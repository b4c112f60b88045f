"""The rotation over etcd's endpoints, the thread of a call, and the causes of failures in words."""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import TYPE_CHECKING

import pytest
import urllib3

from flannelpy.errors import ApiSwitchedOff, KeyExists, RegistryUnavailable, UsageError
from flannelpy.registry.endpoints import CallThreads, Endpoint, NoAnswer, NoSuchApi, Rotation, no_answer, parse_endpoint

if TYPE_CHECKING:
    from collections.abc import Callable


class Client:
    """A client that gives ``answer``, or raises it."""

    def __init__(self, number: int, answer: str | Exception = "") -> None:
        self.url = parse_endpoint(f"http://10.0.0.{number}")
        self.answer = answer
        self.calls: list[str] = []

    def call(self, name: str) -> str:
        self.calls.append(name)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def request(client: Client) -> str:
    return client.call("request")


def settle(client: Client) -> str:
    return client.call("settle")


def test_the_endpoint_that_answered_last_comes_first() -> None:
    clients = Client(1, NoAnswer("refused", sent=False)), Client(2, "b"), Client(3, "c")
    rotation = Rotation(clients)
    assert [rotation.ask(request) for _ in range(3)] == ["b", "b", "b"]
    assert rotation.preferred is clients[1]
    assert [len(client.calls) for client in clients] == [1, 3, 0]


@pytest.mark.parametrize(("sent", "second_call"), [(False, "request"), (True, "settle")])
def test_a_write_that_may_have_been_executed_is_settled_on_the_next_endpoint(sent: bool, second_call: str) -> None:
    clients = Client(1, NoAnswer("no answer in time", sent)), Client(2, "b")
    assert Rotation(clients).ask(request, settle) == "b"
    assert [client.calls for client in clients] == [["request"], [second_call]]


def test_a_refusal_is_an_answer() -> None:
    clients = Client(1, KeyExists("a")), Client(2, "b")
    with pytest.raises(KeyExists):
        Rotation(clients).ask(request)
    assert clients[1].calls == []


@pytest.mark.parametrize("error", [RecursionError(), MemoryError(), KeyError("node")])
def test_any_other_exception_is_no_answer_and_may_have_been_executed(error: Exception) -> None:
    clients = Client(1, error), Client(2, "b")
    assert Rotation(clients).ask(request, settle) == "b"
    assert clients[1].calls == ["settle"]


def test_an_endpoint_that_has_the_api_counts_more_than_those_without() -> None:
    clients = Client(1, NoSuchApi("no v2")), Client(2, NoSuchApi("none here")), Client(3, "b")
    assert Rotation(clients).ask(request) == "b"


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    ("without", "silent", "is_off"),
    [(1, 0, True), (2, 0, True), (1, 1, True), (2, 1, True), (1, 2, False), (3, 2, True), (2, 3, False)],
)
def test_an_api_is_switched_off_if_half_of_the_endpoints_say_so(
    without: int, silent: int, is_off: bool, order: int
) -> None:
    """Each member of etcd has a flag of its own; without half of its members, a cluster does not work."""
    down = NoAnswer("connection refused", sent=False)
    answers = [*(NoSuchApi(f"no v2 at {number}") for number in range(without)), *(down for _ in range(silent))]
    clients = [Client(number, answer) for number, answer in enumerate(answers)][::order]
    with pytest.raises(RegistryUnavailable, match="no v2 at 0") as caught:
        Rotation(clients).ask(request)
    assert isinstance(caught.value, ApiSwitchedOff) == is_off
    if isinstance(caught.value, ApiSwitchedOff):
        assert caught.value.is_certain == (silent == 0)


def test_an_api_is_not_switched_off_because_no_endpoint_answers() -> None:
    with pytest.raises(RegistryUnavailable) as caught:
        Rotation([Client(1, NoAnswer("connection refused", sent=False))]).ask(request)
    assert not isinstance(caught.value, ApiSwitchedOff)


def test_without_any_answer_each_endpoint_is_named_with_its_cause() -> None:
    clients = Client(1, NoAnswer("connection refused", sent=False)), Client(2, ValueError("rubbish"))
    with pytest.raises(RegistryUnavailable) as caught:
        Rotation(clients).ask(request)
    assert str(caught.value) == (
        "http://10.0.0.1:2379: connection refused; http://10.0.0.2:2379: not an answer of etcd's (rubbish)"
    )


def test_a_failure_of_one_endpoint_only_is_passed_over_from_then_on() -> None:
    clients = Client(1, NoAnswer("connection refused", sent=False)), Client(2, "b")
    rotation = Rotation(clients)
    with pytest.raises(RegistryUnavailable, match=r"10\.0\.0\.1:2379: connection refused"):
        rotation.ask_at(clients[0], request)
    assert rotation.preferred is clients[1]


def test_at_least_one_endpoint_is_required() -> None:
    with pytest.raises(UsageError, match="-etcd-endpoints"):
        Rotation([])


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("http://etcd", Endpoint("http", "etcd", 2379)),
        (" https://10.0.0.1:4001/ ", Endpoint("https", "10.0.0.1", 4001)),
        ("http://[fd00::1]", Endpoint("http", "[fd00::1]", 2379)),
    ],
)
def test_an_endpoint_has_a_default_port_and_keeps_the_brackets(text: str, endpoint: Endpoint) -> None:
    assert parse_endpoint(text) == endpoint


@pytest.mark.parametrize("end", [lambda threads, task: threads.close(), lambda threads, task: task.cancel()])
def test_a_result_that_arrives_too_late_is_discarded(
    end: Callable[[CallThreads, asyncio.Task[str]], object],
) -> None:
    async def scenario() -> str:
        threads, release = CallThreads(), threading.Event()
        discarded: queue.Queue[str] = queue.Queue()

        def call() -> str:
            release.wait(10)
            return "late"

        task = asyncio.create_task(threads.run(call, discarded.put))
        await asyncio.sleep(0)
        end(threads, task)
        with pytest.raises((RegistryUnavailable, asyncio.CancelledError)):
            await task
        release.set()
        return await asyncio.to_thread(discarded.get, timeout=10)

    assert asyncio.run(scenario()) == "late"


@pytest.mark.parametrize("failure", [None, NoAnswer("no answer in time", sent=True)])
def test_a_result_that_arrives_with_the_cancellation_is_discarded(failure: NoAnswer | None) -> None:
    async def scenario() -> list[str]:
        threads, release = CallThreads(), threading.Event()
        discarded: list[str] = []

        def call() -> str:
            release.wait(10)
            if failure:
                raise failure
            return "late"

        task = asyncio.create_task(threads.run(call, discarded.append))
        await asyncio.sleep(0)
        [answer] = threads._pending
        release.set()
        # The future is done, and the task has not been resumed yet.
        asyncio.get_running_loop().call_soon(cancel_once_done, answer, task)
        with pytest.raises(asyncio.CancelledError):
            await task
        return discarded

    assert asyncio.run(scenario()) == ([] if failure else ["late"])


def cancel_once_done(answer: asyncio.Future[str], task: asyncio.Task[str]) -> None:
    """Cancel in the turn of the event loop in which the future is done, before its callbacks run."""
    if answer.done():
        task.cancel()
    else:
        asyncio.get_running_loop().call_soon(cancel_once_done, answer, task)


def test_a_result_that_arrives_after_the_event_loop_is_discarded() -> None:
    release, discarded = threading.Event(), queue.Queue[str]()

    def call() -> str:
        release.wait(10)
        return "late"

    async def scenario() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(CallThreads().run(call, discarded.put), 0.01)

    asyncio.run(scenario())
    release.set()
    assert discarded.get(timeout=10) == "late"


def test_closed_threads_take_no_call() -> None:
    async def scenario() -> None:
        threads = CallThreads()
        threads.close()
        with pytest.raises(RegistryUnavailable, match="closed"):
            await threads.run(lambda: "")

    asyncio.run(scenario())


def test_a_system_without_threads_is_a_registry_without_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RegistryUnavailable, match="no thread to ask in: can't start new thread"):
        asyncio.run(CallThreads().run(lambda: ""))


@pytest.mark.parametrize(
    ("error", "words", "sent"),
    [
        (TimeoutError(), "no answer in time", True),
        (ConnectionResetError(104, "Connection reset by peer"), "connection reset by peer", True),
        (urllib3.exceptions.ConnectTimeoutError(), "ConnectTimeoutError", False),
        (urllib3.exceptions.ProtocolError("aborted", ConnectionResetError(104, "Reset")), "reset", True),
    ],
)
def test_a_failure_in_words(error: Exception, words: str, sent: bool) -> None:
    failure = no_answer(error)
    assert str(failure).startswith(words)
    assert failure.sent is sent


def test_the_words_of_a_proxy_fit_on_one_line() -> None:
    assert str(NoAnswer("<html>\n <p>" + "x" * 1000, sent=True)).startswith("<html> <p>xxx")
    assert len(str(NoAnswer("x" * 100_000, sent=True))) < 250
