"""Parses the list in an answer of etcd element by element, while its text arrives.

The whole answer can be larger than all other memory of the process, and json.loads of 100,000 keys would stop all
threads for half a second.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

# etcd accepts values of 1.5 MB; JSON may write each byte as six characters.
_LONGEST_VALUE = 16 << 20
_IN_A_ROW = 50  # elements that are parsed before other threads get their turn
_DECODE = json.JSONDecoder().raw_decode


def elements(pieces: Iterator[str], key: str) -> Generator[Any, None, Any]:
    """Yield the elements of the list that is the value of ``key``; return the answer without them.

    ``"key":`` cannot match inside a value, because JSON writes a backslash before each quote there.  Blanks may be
    between all tokens.  An answer without such a list is returned as a whole.  Raises ValueError if the answer is
    malformed or ends early.
    """
    text = _Text(pieces)
    if not text.skip_past(re.compile(rf'"{key}"[ \t\r\n]*:[ \t\r\n]*\[')):
        return json.loads(text.rest())
    before = text.passed
    if not text.skip("]"):
        yield from _elements(text)
    return json.loads(f"{before}]{text.rest()}")


def _elements(text: _Text) -> Iterator[Any]:
    """Yield the elements of a list, from its first element to its closing bracket."""
    for number in itertools.count():
        yield text.value()
        if text.skip("]"):
            return
        if not text.skip(","):
            raise ValueError("a list without commas, or without an end")
        if not number % _IN_A_ROW:
            time.sleep(0)  # lets other threads run


class _Text:
    """The text of an answer; only the part that is being parsed is kept.

    Raises ValueError if the text ends early, or if a value is longer than ``_LONGEST_VALUE``.
    """

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._text = ""
        self._at = 0
        #: What ``skip_past`` has skipped.
        self.passed = ""

    def skip_past(self, pattern: re.Pattern[str]) -> bool:
        """Go behind the first match of ``pattern`` and return True; without any, keep all of the text."""
        while (found := pattern.search(self._text)) is None:
            if not self._read():
                return False
        self._at = found.end()
        self.passed = self._text[: self._at]
        return True

    def skip(self, character: str) -> bool:
        """Go behind ``character`` if it comes next, after any blanks; return whether it did."""
        self._skip_blanks()
        is_next = self._text.startswith(character, self._at)
        self._at += is_next
        return is_next

    def value(self) -> Any:
        """Return the JSON value that comes next, after any blanks."""
        self._skip_blanks()
        while True:
            try:
                value, self._at = _DECODE(self._text, self._at)
            except ValueError:
                if not self._read():
                    raise
            else:
                return value

    def _skip_blanks(self) -> None:
        while True:
            text = self._text
            while self._at < len(text) and text[self._at].isspace():
                self._at += 1
            if self._at < len(text) or not self._read():
                return

    def rest(self) -> str:
        """Return all of the text that has not been parsed."""
        while self._read():
            pass
        return self._text[self._at :]

    def _read(self) -> bool:
        """Read more text, twice as much as before if a value is long; return False at the end."""
        rest = [self._text[self._at :]]
        size = wanted = len(rest[0])
        for piece in self._pieces:
            rest.append(piece)
            size += len(piece)
            if size > _LONGEST_VALUE:
                raise ValueError(f"more than {_LONGEST_VALUE} characters without the end of a value")
            if size > 2 * wanted:
                break
        self._text, self._at = "".join(rest), 0
        return size > wanted
