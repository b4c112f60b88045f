"""Time spans and sizes as people read them."""

from __future__ import annotations

import pytest

from flannelpy.units import size, span


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"),
        (0, "0 s"),
        (0.9, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (3601, "1 h"),
        (3661, "1 h 1 min"),
        (86_399, "23 h 59 min"),
        (86_400, "1 d"),
        (86_460, "1 d"),
        (400 * 86_400 + 7200, "400 d 2 h"),
    ],
)
def test_time_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1_234_567, "1.2 MiB"),
        (1 << 30, "1.0 GiB"),
        (1 << 63, "8192.0 PiB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text
