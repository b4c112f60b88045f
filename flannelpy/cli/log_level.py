"""The command line of ``flannelpy log-level``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flannelpy.cli import control, values
from flannelpy.cli.flags import PROGRAM
from flannelpy.cli.subcommand import SubCommand
from flannelpy.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NAME = "log-level"

ABOUT = f"""\
Usage: {PROGRAM} {NAME} N [flags]

Has the running daemon log at level N until it ends: 0 is normal, 1 adds
details. Exits with 0 when the level has changed, with 2 for a wrong level or
flag, and with 3 if no daemon answers.

Flags:
"""


COMMAND = SubCommand(NAME, ABOUT, *control.FLAGS)


def parse(argv: Sequence[str]) -> tuple[Path, int]:
    """Return the daemon's control socket, and the level.  Raises UsageError; -help exits."""
    first, others = argv[:1], argv[1:]
    level = None if not first or first[0].startswith("-") else _level(first[0])
    context = COMMAND.parse(argv if level is None else others)
    if level is None:
        raise UsageError(f"{NAME} needs a level as its first word: {PROGRAM} {NAME} 1")
    return control.socket_of(context), level


def _level(text: str) -> int:
    try:
        return values.level(text)
    except ValueError as error:
        raise UsageError(f"bad level {text!r} for {NAME}: {error}") from None
