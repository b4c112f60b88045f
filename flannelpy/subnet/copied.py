"""The mark of a copy that ``flannelpy copy-to-v3`` has made in etcd v3 of a value in etcd v2.  Pure.

A copy is the text in v2 with one more key at its end, which all originals ignore::

    {"PublicIP":"172.17.8.101","CopiedFromV2":"1042-5c1a9e07"}

1042 is the version of the key in v2, which changes with every write, renewals included.  5c1a9e07 is the CRC-32 of the
text in v2: if it does not match, another program has changed the copy since.  A host that writes its lease writes no
mark.

A text in v2 may have a mark itself, if an operator has written a copy back there.  It counts as the text without the
mark, so that no copy has two.
"""

from __future__ import annotations

import re
import zlib
from typing import NamedTuple

from flannelpy.subnet import go_json

MARK = "CopiedFromV2"

_END = re.compile(rf',?"{MARK}":"(\d+)-([0-9a-f]{{8}})"}}', re.ASCII)
_LONGEST_END = 60
# A mark as an operator's tools may have formatted it.
_LAST_KEY = re.compile(rf',?\s*"{MARK}"\s*:\s*"[^"]*"\s*}}\Z', re.ASCII)
_LONGEST_LAST_KEY = 200


class Original(NamedTuple):
    """The text in v2, and its version there, of which a copy was made."""

    text: str
    version: int


def copy_of(text: str, version: int) -> str:
    """Return the copy of a JSON object that has ``version`` in v2.  Raises ValueError if ``text`` is none."""
    text = unmarked(text)
    is_empty = not go_json.parse_object(text)
    return f'{text[:-1]}{"" if is_empty else ","}"{MARK}":"{version}-{_digest(text)}"}}'


def original(copy: str) -> Original | None:
    """Return of what ``copy`` is an unchanged copy; None if it has no mark, or was changed since."""
    found = _END.search(copy, max(len(copy) - _LONGEST_END, 0))
    if not found or found.end() != len(copy):
        return None
    text = copy[: found.start()] + "}"
    return Original(text, int(found[1])) if _digest(text) == found[2] else None


def unmarked(text: str) -> str:
    """Return ``text`` without white space at its end, and without a mark of any text."""
    text = text.rstrip()
    found = _LAST_KEY.search(text, max(len(text) - _LONGEST_LAST_KEY, 0))
    return text[: found.start()] + "}" if found else text


def shows(first: str, second: str) -> bool:
    """Return whether ``first`` in v3 is ``second`` in v2, or an unchanged copy of it at any version."""
    copy = original(first)
    return first == second or (copy is not None and copy.text == unmarked(second))


def _digest(text: str) -> str:
    return f"{zlib.crc32(text.encode('utf-8', 'surrogatepass')):08x}"
