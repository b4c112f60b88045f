"""JSON as the original reads it: keys match in upper and lower case, unknown keys are ignored.  Pure.

If several keys match, the last one in the text counts, in any case.
Source: encoding/json of Go, decode.go: each key of the text is stored into the field whose name it matches.
"""

import json
from collections.abc import Iterable, Mapping

from flannelpy.foreign import shown

#: Nesting depth of objects and lists.  Python's own limit depends on the depth of the caller's stack.
MOST_NESTED = 64


def parse_object(text: str) -> dict[str, object]:
    """Parse the JSON object in ``text``.  Raises ValueError with the position of the error."""
    try:
        document = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_in_order)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at line {error.lineno} column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("not JSON: it is nested too deep") from error
    except ValueError as error:  # from _refuse_constant, or too many digits
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"not a JSON object: {shown(' '.join(text[:400].split())[:40])}")
    if text.count("[") + text.count("{") > MOST_NESTED and _nesting(document) > MOST_NESTED:
        raise ValueError("not JSON: it is nested too deep")
    return document


def get(document: Mapping[str, object], name: str) -> object:
    """Return the value of key ``name``; None if the key is missing or null."""
    folded = name.casefold()
    found = [value for key, value in document.items() if value is not None and key.casefold() == folded]
    return found[-1] if found else None


def _in_order(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Make an object; a repeated key keeps the place of its last occurrence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        found = {}
        for key, value in pairs:
            found.pop(key, None)
            found[key] = value
    return found


def _nesting(document: object) -> int:
    """Return the nesting depth of objects and lists."""
    depth, level = 0, [document]
    while level:
        depth += 1
        level = [inner for outer in level for inner in _values(outer) if isinstance(inner, dict | list)]
    return depth


def _values(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _refuse_constant(name: str) -> float:
    raise ValueError(name)


def dump(value: object) -> str:
    """Write ``value`` as the original does, without blanks."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def show(value: object) -> str:
    """Format ``value`` for a message."""
    return shown(dump(value))
