"""Dataclasses as objects that ``json`` accepts, and back, by the types of their fields.  Pure.

The types are those of ``flannelpy.report``: strings, numbers, truth values, StrEnums, addresses, networks, paths,
other such dataclasses, tuples and mappings of one type each, and any of these or None.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache, partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, TypeVar

RecordT = TypeVar("RecordT")
_Decoder = Callable[[object], object]


def encode(record: object) -> dict[str, object]:
    """Return the fields of a dataclass by their names; addresses, networks and paths are strings."""
    kind: Any = type(record)
    return {name: _encode(getattr(record, name)) for name in _field_names(kind)}


@cache
def _field_names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def _encode(value: object) -> object:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, IPv4Network | IPv4Address | Path):
        return str(value)
    if isinstance(value, Mapping):
        return {name: _encode(each) for name, each in value.items()}
    return [_encode(each) for each in value] if isinstance(value, tuple) else encode(value)


def decode(kind: type[RecordT], encoded: object) -> RecordT:
    """Return the dataclass whose fields ``encoded`` has.

    Fields that the dataclass does not have are ignored; a field that ``encoded`` does not have gets its default.
    Raises ValueError for a value of another type, and for a missing field without a default.
    """
    if not isinstance(encoded, dict):
        raise ValueError(f"{kind.__name__} must be an object")
    values = {}
    decoders: Mapping[str, tuple[_Decoder, bool]] = _decoders(typing.cast("Any", kind))
    for name, (decode_value, is_required) in decoders.items():
        if name in encoded:
            values[name] = decode_value(encoded[name])
        elif is_required:
            raise ValueError(f"{kind.__name__} lacks {name}")
    return kind(**values)


@cache
def _decoders(kind: Any) -> dict[str, tuple[_Decoder, bool]]:
    """Return for each field what decodes it, and whether it must be there."""
    hints = typing.get_type_hints(kind)
    return {
        each.name: (_decoder(hints[each.name]), each.default is MISSING and each.default_factory is MISSING)
        for each in fields(kind)
    }


def _decoder(hint: Any) -> _Decoder:
    arguments, origin = typing.get_args(hint), typing.get_origin(hint)
    if origin is types.UnionType:
        return partial(_optional, _decoder(arguments[0]))
    if origin is tuple:
        return partial(_tuple, _decoder(arguments[0]))
    if origin is Mapping:
        return partial(_mapping, _decoder(arguments[1]))
    if hint in _SCALARS:
        return _SCALARS[hint]
    return partial(decode, typing.cast("Any", hint)) if is_dataclass(hint) else partial(_from_text, hint)


def _optional(decode_value: _Decoder, encoded: object) -> object:
    return None if encoded is None else decode_value(encoded)


def _tuple(decode_value: _Decoder, encoded: object) -> object:
    if not isinstance(encoded, list):
        raise ValueError(f"{encoded!r} is not an array")
    return tuple(decode_value(each) for each in encoded)


def _mapping(decode_value: _Decoder, encoded: object) -> object:
    if not isinstance(encoded, dict):
        raise ValueError(f"{encoded!r} is not an object")
    return {name: decode_value(value) for name, value in encoded.items()}


def _from_text(kind: Callable[[str], object], encoded: object) -> object:
    return kind(_text(encoded))


def _text(encoded: object) -> str:
    if not isinstance(encoded, str):
        raise ValueError(f"{encoded!r} is not a string")
    return encoded


def _whole_number(encoded: object) -> object:
    if not isinstance(encoded, int) or isinstance(encoded, bool):
        raise ValueError(f"{encoded!r} is not a whole number")
    return encoded


def _number(encoded: object) -> object:
    if not isinstance(encoded, int | float) or isinstance(encoded, bool):
        raise ValueError(f"{encoded!r} is not a number")
    try:
        return float(encoded)
    except OverflowError:
        raise ValueError("a number is too large") from None


def _truth_value(encoded: object) -> object:
    if not isinstance(encoded, bool):
        raise ValueError(f"{encoded!r} is neither true nor false")
    return encoded


_SCALARS: dict[object, _Decoder] = {str: _text, int: _whole_number, float: _number, bool: _truth_value}
