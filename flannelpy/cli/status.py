"""The command line of ``flannelpy status``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flannelpy.cli import control, values
from flannelpy.cli.flags import PROGRAM, Flag
from flannelpy.cli.subcommand import SubCommand
from flannelpy.commands.status import Form
from flannelpy.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NAME = "status"

ABOUT = f"""\
Usage: {PROGRAM} {NAME} [flags]

Asks the running daemon, and prints its networks, its peers and its problems,
each problem with a remedy. Exits with 0 if all networks are ready and there is
no problem, with 1 otherwise, with 2 for a wrong flag, and with 3 if no daemon
answers.

Flags:
"""


BRIEF = Flag("brief", "Status", values.boolean, "Omit the peers.", default="false", has_variable=False)
JSON = Flag(
    "json",
    "Status",
    values.boolean,
    "Print a JSON document; the manual lists its keys.",
    default="false",
    has_variable=False,
)
PROMETHEUS = Flag(
    "prometheus",
    "Status",
    values.optional_path,
    "Print nothing; write the metrics for Prometheus into this file, which is\n"
    "      replaced as a whole, for the textfile collector of node_exporter.",
    value="FILE",
    has_variable=False,
)
COMMAND = SubCommand(NAME, ABOUT, BRIEF, JSON, PROMETHEUS, *control.FLAGS)


def parse(argv: Sequence[str]) -> tuple[Path, Form | Path]:
    """Return the daemon's control socket, and what to print, or the file for Prometheus.

    Raises UsageError; -help exits.
    """
    context = COMMAND.parse(argv)
    if file := context.params["prometheus"]:
        for other in ("brief", "json"):
            if context.params[other]:
                raise UsageError(f"-prometheus and -{other} exclude each other: -prometheus prints nothing")
        return control.socket_of(context), file
    if context.params["brief"] and context.params["json"]:
        raise UsageError("-brief and -json exclude each other: the JSON document has the peers")
    form = Form.BRIEF if context.params["brief"] else Form.JSON if context.params["json"] else Form.FULL
    return control.socket_of(context), form
