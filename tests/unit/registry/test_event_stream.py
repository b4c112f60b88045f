"""JSON values out of text that comes in pieces of any size, each as soon as it is complete."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from flannelpy.registry import event_stream
from flannelpy.registry.event_stream import json_values

VALUES: list[dict[str, object]] = [
    {"action": "set", "node": {"key": "/a", "value": '}\n{"b":1}', "modifiedIndex": 7}},
    {},
    {"a": {"b": {"c": "\u2028\ud800\\"}}},
    {"long": "}" * 5000},
]


@pytest.mark.parametrize("between", ["\n", "", "\r\n\n ", "\n\n"])
@pytest.mark.parametrize("length", [1, 2, 7, 100, 100_000])
@pytest.mark.parametrize("indent", [None, 2])
def test_values_are_those_of_json(between: str, length: int, indent: int | None) -> None:
    text = between.join(json.dumps(value, indent=indent) for value in VALUES) + between
    pieces = (text[at : at + length] for at in range(0, len(text), length))
    assert [value for value, _ in json_values(pieces)] == VALUES


def test_a_value_comes_with_its_last_piece_and_not_with_the_next_one() -> None:
    taken: list[str] = []

    def pieces() -> Iterator[str]:
        for piece in ('{"a"', ':1}', '\n{"b":2', "}\n", '{"c":3}\n{"d"', ":4}"):  # fmt: skip
            taken.append(piece)
            yield piece

    found = [(next(iter(value)), len(taken)) for value, _ in json_values(pieces())]
    assert found == [("a", 2), ("b", 4), ("c", 5), ("d", 6)]


@pytest.mark.parametrize("text", ["{", '{"a":1}\n{"b"', "rubbish\n", "<html>}", "\n\n}"])
def test_what_is_no_value_or_ends_within_one_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="within an event"):
        list(json_values([text]))


def test_a_value_that_never_ends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "LONGEST_EVENT", 1000)

    def pieces() -> Iterator[str]:
        yield '{"a":"'
        while True:
            yield "x" * 90

    with pytest.raises(ValueError, match="more than 1000 characters"):
        list(json_values(pieces()))
