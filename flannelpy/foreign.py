"""Makes text of other programs printable for a log line, a status or an error message.  Pure.

Keys and values in the store, and the answers of proxies, can contain anything: newlines that would begin a log record,
terminal escapes, characters that change the writing direction, or megabytes.
"""

#: Characters of foreign text that a message shows.
LONGEST = 100


def escaped(text: str) -> str:
    """Return ``text`` on one line, with unprintable characters escaped as in a Python literal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def shown(text: object, longest: int = LONGEST) -> str:
    """Return ``text`` on one line, cut to ``longest`` characters; a cut text is followed by its full length."""
    whole = str(text)
    line = escaped(whole[: longest + 1])
    return line if len(line) <= longest else f"{line[:longest]}... ({len(whole)} characters)"
