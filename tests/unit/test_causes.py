"""Each cause is reported once while it lasts, and in one line for all that it concerns."""

from __future__ import annotations

import tracemalloc
from ipaddress import IPv4Network

from flannelpy.causes import MOST_SUBJECTS, Causes, by_cause


def test_a_cause_is_new_once_until_another_one_or_a_recovery() -> None:
    causes = Causes()
    assert [causes.is_new(cause) for cause in ("a", "a", "b", "a", "a")] == [True, False, True, True, False]
    assert causes.clear()
    assert not causes.clear()
    assert causes.is_new("a")


def test_the_same_mistake_with_another_value_is_another_cause() -> None:
    causes = Causes()
    assert causes.is_new(("SubnetLen", 31))
    assert causes.is_new(("SubnetLen", 32))


def test_subjects_have_causes_of_their_own() -> None:
    causes = Causes()
    assert causes.is_new("a", "one")
    assert causes.is_new("a", "other")
    causes.clear("one")
    assert not causes.is_new("a", "other")
    assert causes.is_new("a", "one")


def test_only_present_subjects_are_kept() -> None:
    causes = Causes()
    for subject in ("one", "other"):
        causes.is_new("a", subject)
    causes.keep_only({"one", "third"})
    assert not causes.is_new("a", "one")
    assert causes.is_new("a", "other")


def test_networks_of_equal_hash_are_different_subjects() -> None:
    around, inside = IPv4Network("10.0.64.0/20"), IPv4Network("10.0.79.248/29")
    assert hash(around) == hash(inside)
    causes = Causes()
    assert causes.is_new("overlap", around)
    assert causes.is_new("overlap", inside)
    causes.keep_only([inside])
    assert causes.is_new("overlap", around)
    assert causes.clear(around)
    assert not causes.is_new("overlap", inside)


def test_memory_is_bounded_and_later_subjects_are_never_new() -> None:
    causes = Causes()
    tracemalloc.start()
    new = [causes.is_new("x" * 1000 + str(number), f"{number}") for number in range(10 * MOST_SUBJECTS)]
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert new == [True] * MOST_SUBJECTS + [False] * 9 * MOST_SUBJECTS
    assert size < 400_000
    assert causes.is_new("another cause", "7")


def test_subjects_with_one_cause_are_one_line() -> None:
    pairs = [("a", "x"), ("b", "y"), *((number, "x") for number in range(5))]
    assert by_cause(pairs) == ["a, 0, 1 and 3 more: x", "b: y"]
    assert by_cause([]) == []
