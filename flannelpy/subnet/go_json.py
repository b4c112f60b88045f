"""JSON as the original reads it: objects whose keys match whatever their case, unknown keys ignored.  Pure.

Source: encoding/json of Go, "preferring an exact match but also accepting a case-insensitive match".
"""

import json
from collections.abc import Mapping


def parse_object(text: str) -> dict[str, object]:
    """The JSON object in ``text``.  Raises ValueError with a message that says where it goes wrong."""
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at line {error.lineno} column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("not JSON: it is nested too deep") from error
    except ValueError as error:  # a constant of ours below, too many digits
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"not a JSON object: {' '.join(text.split())[:40]}")
    return document


def get(document: Mapping[str, object], name: str) -> object:
    """The value of key ``name``, or None: a missing key and a null are the same."""
    if name in document:
        return document[name]
    folded = name.casefold()
    return next((value for key, value in document.items() if key.casefold() == folded), None)


def _refuse_constant(name: str) -> float:
    raise ValueError(name)


def dump(value: object) -> str:
    """``value`` as the original writes it: no blanks."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
