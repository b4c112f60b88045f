"""The command line of ``flannelpy check``: the flags of the daemon, and -json."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flannelpy.cli import values
from flannelpy.cli.flags import FLAGS, PROGRAM, Flag
from flannelpy.cli.subcommand import SubCommand

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


JSON = Flag(
    "json",
    "Check",
    values.boolean,
    "Print one JSON document instead of lines.",
    default="false",
    has_variable=False,
)
COMMAND = SubCommand(NAME, ABOUT, JSON, *(flag for flag in FLAGS if flag.flag not in _NOT_OF_A_CHECK))


def parse(argv: Sequence[str]) -> tuple[Options, bool]:
    """Return the options, and whether to print JSON.  Raises UsageError; -help exits."""
    return COMMAND.parse_with_options(argv, JSON)
