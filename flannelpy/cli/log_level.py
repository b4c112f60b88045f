"""The command line of ``flannelpy log-level``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flannelpy.cli import control, values
from flannelpy.cli.flags import PROGRAM, InfoFlag
from flannelpy.cli.go_flags import go_spelling
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


def usage() -> str:
    """Return the help text."""
    return ABOUT + "".join(flag.manual for flag in FLAGS).rstrip()


FLAGS = (*control.FLAGS, InfoFlag("help", "Print this text.", usage))
COMMAND = click.Command(f"{PROGRAM} {NAME}", params=list(FLAGS), add_help_option=False)
_FLAGS_BY_NAME = {flag.flag: flag for flag in FLAGS} | {"h": FLAGS[-1]}


def parse(argv: Sequence[str]) -> tuple[Path, int]:
    """Return the daemon's control socket, and the level.  Raises UsageError; -help exits."""
    first, others = argv[:1], argv[1:]
    level = None if not first or first[0].startswith("-") else _level(first[0])
    context = COMMAND.make_context(COMMAND.name, list(go_spelling(argv if level is None else others, _FLAGS_BY_NAME)))
    if level is None:
        raise UsageError(f"{NAME} needs a level as its first word: {PROGRAM} {NAME} 1")
    return control.socket_of(context), level


def _level(text: str) -> int:
    try:
        return values.level(text)
    except ValueError as error:
        raise UsageError(f"bad level {text!r} for {NAME}: {error}") from None
