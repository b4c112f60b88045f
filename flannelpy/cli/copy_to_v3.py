"""The command line of ``flannelpy copy-to-v3``: the flags of the daemon that name a store, and -follow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flannelpy.cli import values
from flannelpy.cli.flags import BY_NAME, PROGRAM, Flag
from flannelpy.cli.subcommand import SubCommand

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flannelpy.options import Options

NAME = "copy-to-v3"

ABOUT = f"""\
Usage: {PROGRAM} {NAME} [flags]

Copies the network config and all leases from the v2 store of etcd to its v3
store, for a change-over from -etcd-api=2 to -etcd-api=3. Changes nothing in v2,
and nothing in v3 but its own copies. Exits with 1 if a key in v3 differs that
is no copy, or if hosts with -etcd-api=3 refuse the config.

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


FOLLOW = Flag(
    "follow",
    "Copy",
    values.boolean,
    "Keep the copies equal to v2, until a signal, or until v2 has no config.",
    default="false",
    has_variable=False,
)
COMMAND = SubCommand(NAME, ABOUT, FOLLOW, *(BY_NAME[name] for name in _OF_THE_DAEMON))


def parse(argv: Sequence[str]) -> tuple[Options, bool]:
    """Return the options, and whether to follow.  Raises UsageError; -help exits."""
    return COMMAND.parse_with_options(argv, FOLLOW)
