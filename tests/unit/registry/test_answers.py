"""When a store answered last, and since when it is silent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from flannelpy.errors import KeyNotFound, RegistryUnavailable
from flannelpy.registry.answers import Answers, undecided
from flannelpy.registry.endpoints import Endpoint, NoAnswer, NoSuchApi, Rotation
from flannelpy.report import StoreReport

if TYPE_CHECKING:
    from collections.abc import Callable

WALL = 1_800_000_000.0


class Clock:
    """Seconds that the test moves; Unix time began at ``WALL``."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def now(self) -> float:
        return self.seconds

    def wall(self) -> float:
        return WALL + self.seconds


class Client:
    """An endpoint that does what the test wants."""

    def __init__(self, host: str) -> None:
        self.url = Endpoint("http", host, 2379)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cluster(clock: Clock) -> Rotation[Client]:
    cluster = Rotation([Client("a"), Client("b")])
    cluster.answers = Answers(clock.now, clock.wall)
    return cluster


def raising(error: Exception, seconds: float, clock: Clock) -> Callable[[Client], None]:
    def request(_: Client) -> None:
        clock.seconds += seconds
        raise error

    return request


def test_before_the_first_request_nothing_is_known(cluster: Rotation[Client]) -> None:
    assert cluster.report(3) == StoreReport(3, "http://a:2379", None, None)


def test_an_answer_ends_the_silence(cluster: Rotation[Client], clock: Clock) -> None:
    with pytest.raises(RegistryUnavailable):
        cluster.ask(raising(NoAnswer("no answer in time", sent=True), 4.0, clock))
    clock.seconds += 1
    with pytest.raises(RegistryUnavailable):
        cluster.ask_at(cluster.clients[1], raising(NoAnswer("connection refused", sent=False), 0.0, clock))
    silent = StoreReport(3, "http://a:2379", None, WALL + 100, "http://b:2379: connection refused")
    assert cluster.report(3) == silent
    cluster.ask(lambda _: None)
    clock.seconds += 7
    assert cluster.report(3) == StoreReport(3, "http://a:2379", WALL + 109, None)
    with pytest.raises(RegistryUnavailable):
        cluster.ask_at(cluster.clients[0], raising(NoAnswer("no answer in time", sent=True), 4.0, clock))
    assert cluster.report(2) == StoreReport(
        2, "http://b:2379", WALL + 109, WALL + 116, "http://a:2379: no answer in time"
    )


def test_another_endpoint_that_answers_is_enough(cluster: Rotation[Client], clock: Clock) -> None:
    def request(client: Client) -> None:
        clock.seconds += 1
        if client.url.host == "a":
            raise NoAnswer("connection refused", sent=False)

    cluster.ask(request)
    assert cluster.report(3) == StoreReport(3, "http://b:2379", WALL + 102, None)


def test_a_refusal_is_an_answer(cluster: Rotation[Client], clock: Clock) -> None:
    with pytest.raises(KeyNotFound):
        cluster.ask(raising(KeyNotFound("config: key not found"), 1.0, clock))
    assert cluster.report(2).answered_at == WALL + 101
    with pytest.raises(RegistryUnavailable):
        cluster.ask(raising(NoSuchApi("the v2 API is switched off"), 1.0, clock))
    assert cluster.report(2) == StoreReport(2, "http://a:2379", WALL + 103, None)


def test_nonsense_is_no_answer(cluster: Rotation[Client], clock: Clock) -> None:
    with pytest.raises(RegistryUnavailable):
        cluster.ask(raising(TypeError("no dictionary"), 1.0, clock))
    assert cluster.report(2).silent_since == WALL + 100
    assert cluster.report(2).failure == "http://b:2379: not an answer of etcd's (no dictionary)"


def test_a_request_that_began_before_the_last_answer_proves_no_silence(clock: Clock) -> None:
    answers = Answers(clock.now, clock.wall)
    clock.seconds += 1
    answers.answered()
    clock.seconds += 3
    answers.failed(100.0, "no answer in time")
    assert answers.report(3, "").silent_since is None
    answers.failed(102.0, "no answer in time")
    answers.failed(101.5, "connection refused")
    assert answers.report(3, "") == StoreReport(3, "", WALL + 101, WALL + 101.5, "connection refused")


def test_two_stores_of_which_none_is_chosen_are_one() -> None:
    v2 = StoreReport(2, "http://a:2379", 5.0, None)
    v3 = StoreReport(3, "http://b:2379", None, 7.0, "connection refused")
    assert undecided([v2, v3]) == StoreReport(None, "http://b:2379", 5.0, 7.0, "connection refused")
    assert undecided([v2, v2]) == StoreReport(None, "http://a:2379", 5.0, None)
