"""The command line of ``flannelpy check``: the flags of the daemon, and -json."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flannelpy import cli
from flannelpy.cli import flags as daemon_flags
from flannelpy.cli import values
from flannelpy.cli.flags import PROGRAM, Flag, InfoFlag
from flannelpy.cli.go_flags import go_spelling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flannelpy.options import Options

NAME = "check"

ABOUT = f"""\
Usage: {PROGRAM} {NAME} [flags]

Follows the way of a packet from the network config in etcd to the containers
of each other host, and prints a line for each link: ok, warning or bad, and
what to do. Changes nothing. Give it the flags and variables of the daemon, so
that it finds the same interface, etcd and files. Needs root.

Exits with 1 if any line is bad, and with 2 for a wrong flag.

Flags:
"""

_NOT_OF_A_CHECK = ("cleanup", "release", "version", "help")


def usage() -> str:
    """Return the help text."""
    return ABOUT + "".join(flag.manual for flag in FLAGS).rstrip()


JSON = Flag(
    "json",
    "Check",
    values.boolean,
    "Print one JSON document instead of lines.",
    default="false",
    has_variable=False,
)
_OF_THE_DAEMON = tuple(flag for flag in daemon_flags.FLAGS if flag.flag not in _NOT_OF_A_CHECK)
FLAGS = (JSON, *_OF_THE_DAEMON, InfoFlag("help", "Print this text.", usage))
COMMAND = click.Command(f"{PROGRAM} {NAME}", params=list(FLAGS), add_help_option=False)
_FLAGS_BY_NAME = {flag.flag: flag for flag in FLAGS} | {"h": FLAGS[-1]}


def parse(argv: Sequence[str]) -> tuple[Options, bool]:
    """Return the options, and whether to print JSON.  Raises UsageError; -help exits."""
    words = list(go_spelling(argv, _FLAGS_BY_NAME))
    context = COMMAND.make_context(COMMAND.name, list(words))
    of_the_daemon = [word for word in words if not word.startswith(f"--{JSON.flag}=")]
    return cli.parse(of_the_daemon), bool(context.params["json"])
