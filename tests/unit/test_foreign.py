"""What others wrote becomes one short printable line."""

from __future__ import annotations

import pytest

from flannelpy.foreign import LONGEST, escaped, shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("11.0.7.0-24", "11.0.7.0-24"),
        ("\u00dcber \u2026", "\u00dcber \u2026"),
        ("a\nb\r\t\x00\x7f", "a\\nb\\r\\t\\x00\\x7f"),
        ("\x1b[31mred\x9b0m", "\\x1b[31mred\\x9b0m"),
        ("\u2028\u2029\x85", "\\u2028\\u2029\\x85"),
        ("\u202eevil\u2066\u200b\ufeff", "\\u202eevil\\u2066\\u200b\\ufeff"),
        ("\ud800\udc00\ue000", "\\ud800\\udc00\\ue000"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_is_not_printable_is_escaped(text: str, expected: str) -> None:
    assert escaped(text) == expected
    assert shown(text) == expected
    assert expected.isprintable()


@pytest.mark.parametrize("length", [LONGEST - 1, LONGEST, LONGEST + 1, 10_000_000])
def test_it_has_an_end(length: int) -> None:
    expected = "x" * length if length <= LONGEST else f"{'x' * LONGEST}... ({length} characters)"
    assert shown("x" * length) == expected


def test_anything_can_be_shown() -> None:
    assert [shown(thing) for thing in (None, 7, [1], ValueError("a\nb"))] == ["None", "7", "[1]", "a\\nb"]
