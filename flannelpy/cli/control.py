"""The flags by which a command names the daemon that it asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from click.core import ParameterSource

from flannelpy.cli.flags import BY_NAME
from flannelpy.errors import UsageError
from flannelpy.options import control_socket

if TYPE_CHECKING:
    from pathlib import Path

    import click

FLAGS = (BY_NAME["subnet-file"], BY_NAME["subnet-dir"])


def socket_of(context: click.Context) -> Path:
    """Return the control socket of the daemon with that -subnet-file, or with that -subnet-dir and -networks.

    A flag wins over a variable; of the two variables, that of the directory wins, because a daemon without -networks
    ignores it.  Raises UsageError if both flags are given.
    """
    of_file, of_directory = (context.get_parameter_source(name) for name in ("subnet_file", "subnet_dir"))
    if of_file is of_directory is ParameterSource.COMMANDLINE:
        raise UsageError("-subnet-file and -subnet-dir name two daemons: give -subnet-dir for one with -networks")
    by_directory = of_directory is ParameterSource.COMMANDLINE or (
        of_directory is ParameterSource.ENVIRONMENT and of_file is not ParameterSource.COMMANDLINE
    )
    return control_socket(context.params["subnet_file"], context.params["subnet_dir"] if by_directory else None)
