"""The command line of ``flannelpy copy-to-v3``: the flags of the daemon that name a store, and -follow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flannelpy import cli
from flannelpy.cli import values
from flannelpy.cli.flags import BY_NAME, PROGRAM, Flag, InfoFlag
from flannelpy.cli.go_flags import go_spelling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flannelpy.options import Options

NAME = "copy-to-v3"

ABOUT = f"""\
Usage: {PROGRAM} {NAME} [flags]

Copies the network config and all leases from the v2 store of etcd to its v3
store, for a change-over from -etcd-api=2 to -etcd-api=3. Changes nothing in v2,
and nothing in v3 but its own copies. Exits with 1 if a key in v3 differs that
is no copy.

Flags:
"""

_OF_THE_DAEMON = (
    "etcd-endpoints",
    "etcd-prefix",
    "networks",
    "etcd-cafile",
    "etcd-certfile",
    "etcd-keyfile",
    "etcd-username",
    "etcd-password",
    "v",
)


def usage() -> str:
    """Return the help text."""
    return ABOUT + "".join(flag.manual for flag in FLAGS).rstrip()


FOLLOW = Flag(
    "follow",
    "Copy",
    values.boolean,
    "Keep the copies equal to v2, until a signal, or until v2 has no config.",
    default="false",
    has_variable=False,
)
FLAGS = (FOLLOW, *(BY_NAME[name] for name in _OF_THE_DAEMON), InfoFlag("help", "Print this text.", usage))
COMMAND = click.Command(f"{PROGRAM} {NAME}", params=list(FLAGS), add_help_option=False)
_FLAGS_BY_NAME = {flag.flag: flag for flag in FLAGS} | {"h": FLAGS[-1]}


def parse(argv: Sequence[str]) -> tuple[Options, bool]:
    """Return the options, and whether to follow.  Raises UsageError; -help exits."""
    words = list(go_spelling(argv, _FLAGS_BY_NAME))
    context = COMMAND.make_context(COMMAND.name, list(words))
    of_the_daemon = [word for word in words if not word.startswith(f"--{FOLLOW.flag}=")]
    return cli.parse(of_the_daemon), bool(context.params["follow"])
