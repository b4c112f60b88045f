"""The lines as text for people, and as a JSON document for programs.  Pure.

The keys of the JSON document are an API; docs/check.md lists them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from flannelpy.check.lines import Echo, Level, Line
from flannelpy.foreign import escaped


def text(lines: Sequence[Line]) -> str:
    """Return one line of text for each line, and a summary."""
    return "\n".join([*map(_text, lines), _summary(lines)])


def document(lines: Sequence[Line]) -> str:
    """Return the lines and their numbers as one JSON document."""
    count = Counter(line.level for line in lines)
    return json.dumps({"lines": list(map(_object, lines)), **{level.value: count[level] for level in Level}}, indent=2)


def _text(line: Line) -> str:
    network = f"{line.network}: " if line.network else ""
    remedy = f"; {line.remedy}" if line.remedy else ""
    return escaped(f"{line.level:<8} {line.link:<13} {network}{line.text}{remedy}")


def _summary(lines: Sequence[Line]) -> str:
    count = Counter(line.level for line in lines)
    plural = "" if count[Level.WARNING] == 1 else "s"
    return f"{count[Level.BAD]} bad, {count[Level.WARNING]} warning{plural}, {count[Level.OK]} ok"


def _object(line: Line) -> dict[str, Any]:
    values: dict[str, Any] = {"level": line.level, "link": line.link, "text": line.text}
    values |= {"code": line.code, "remedy": line.remedy} if line.code else {}
    values |= {"network": line.network} if line.network else {}
    values |= {"peer": str(line.peer)} if line.peer else {}
    return values | ({"echo": _echo(line.echo)} if line.echo else {})


def _echo(echo: Echo) -> dict[str, Any]:
    return {
        "source": str(echo.source),
        "target": str(echo.target),
        "sent": echo.sent,
        "received": echo.received,
        "round_trip_ms": echo.milliseconds,
        "full_mtu": echo.full,
        "path_mtu": echo.path_mtu,
    }
