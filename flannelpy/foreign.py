"""Text that others wrote, made fit for a log line, a status or an error message.  Pure.

Keys and values in the store, and the words of proxies, can hold anything: newlines that would begin a record of their
own, terminal escapes, letters that change the direction of what follows, megabytes.
"""

#: Characters of foreign text that a message shows.
LONGEST = 100


def escaped(text: str) -> str:
    """``text`` on one line: what is not printable is escaped, as in a literal of Python's."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def shown(text: object, longest: int = LONGEST) -> str:
    """``text`` on one line and cut to ``longest`` characters, with a word about how long it was."""
    whole = str(text)
    line = escaped(whole[: longest + 1])
    return line if len(line) <= longest else f"{line[:longest]}... ({len(whole)} characters)"
