"""Time spans and sizes as text for people.  Pure."""

from __future__ import annotations

_TIMES = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
_SIZES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def span(seconds: float) -> str:
    """Return a time span in the two largest of its units, such as ``3 h 12 min``; a negative one is ``0 s``."""
    left = max(0, int(seconds))
    counts = []
    for unit, length in _TIMES:
        count, left = divmod(left, length)
        counts.append((count, unit))
    first = next((place for place, (count, _) in enumerate(counts) if count), len(counts) - 1)
    return " ".join(f"{count} {unit}" for count, unit in counts[first : first + 2] if count or len(counts) - first == 1)


def size(count: int) -> str:
    """Return a number of bytes in the unit that leaves at most four digits, such as ``1.2 MiB``."""
    exponent = min(max(0, (count.bit_length() - 1) // 10), len(_SIZES) - 1)
    return f"{count} B" if not exponent else f"{count / 1024**exponent:.1f} {_SIZES[exponent]}"
