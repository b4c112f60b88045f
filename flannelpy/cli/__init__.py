"""The command line: from argv and ``FLANNELD_*`` variables to a command with its options, and to an exit code.

A flag wins over its variable, an empty variable counts as unset.
Exit codes: what the command returns, 2 for a wrong flag or variable, 130 for Ctrl-C before the daemon handles it.
output.py handles output that cannot be written, of all commands.
Counterpart: main.go.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click
from click.core import ParameterSource

from flannelpy.cli import output
from flannelpy.cli.flags import COMMAND, FLAGS, PROGRAM
from flannelpy.cli.go_flags import go_spelling, refuse_unsupported_variables
from flannelpy.errors import FlannelError, UsageError
from flannelpy.foreign import escaped
from flannelpy.options import Options

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Flags that have no effect without each other.
PAIRS = (("etcd_keyfile", "etcd_certfile"), ("etcd_username", "etcd_password"))


def parse(argv: Sequence[str]) -> Options:
    """Return the options that flags and variables set.  Raises UsageError; -help and -version exit."""
    context = COMMAND.make_context(PROGRAM, list(go_spelling(argv)))
    refuse_unsupported_variables()
    refuse_half_pairs(context)
    check_combinations(context)
    return Options(**context.params)


def refuse_half_pairs(context: click.Context) -> None:
    """Raise UsageError for a key without its certificate, a user without a password, and the reverse."""
    by_field = {flag.name: flag for flag in FLAGS}
    for pair in PAIRS:
        given = [by_field[field] for field in pair if context.params[field]]
        missing = [by_field[field] for field in pair if not context.params[field]]
        if given and missing:
            raise UsageError(f"{given[0].spelled(context)} needs -{missing[0].flag}")


def check_combinations(context: click.Context) -> None:
    """Raise UsageError for flags without the one that they need, and for a renew margin that never applies."""
    given = context.params
    if given["release"] and not given["cleanup"]:
        raise UsageError("-release needs -cleanup: a running host needs its lease")
    for flag in FLAGS:
        if flag.name in ("metrics_ip", "metrics_peers") and given[flag.name] and not given["healthz_port"]:
            raise UsageError(f"{flag.spelled(context)} needs -healthz-port, the port of /metrics")
    margin, lease_ttl = given["subnet_lease_renew_margin"], given["subnet_lease_ttl"]
    source = context.get_parameter_source("subnet_lease_renew_margin")
    if margin >= lease_ttl and source is not ParameterSource.DEFAULT:
        raise UsageError(
            f"-subnet-lease-renew-margin={margin // 60} is not shorter than -subnet-lease-ttl, which is {lease_ttl} s"
        )


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Parse the command line, run the command, and exit with its code."""
    words = sys.argv[1:] if argv is None else argv
    command = _COMMANDS.get(words[0]) if words else None
    try:
        with output.checked_stdout():
            code = command(words[1:]) if command else _daemon(words)
        sys.exit(code)
    except FlannelError as error:
        output.end_with(f"{PROGRAM}: {escaped(str(error))}", error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


# The modules of a command are imported when it runs, so that none waits for those of another, nor -help for any.


def _daemon(argv: Sequence[str]) -> int:
    options = parse(argv)
    if options.cleanup:
        return _clean_up(options)
    gc.disable()  # an import leaves next to no garbage; the daemon collects by the clock
    from flannelpy.commands.daemon import run

    return run(options)


def _cleanup(argv: Sequence[str]) -> int:
    return _clean_up(parse(["-cleanup=true", *argv]))


def _clean_up(options: Options) -> int:
    from flannelpy.commands.cleanup import run

    return run(options)


def _copy_to_v3(argv: Sequence[str]) -> int:
    from flannelpy.cli import copy_to_v3
    from flannelpy.commands.copy_to_v3 import run

    return run(*copy_to_v3.parse(argv))


def _check(argv: Sequence[str]) -> int:
    from flannelpy.cli import check
    from flannelpy.commands.check import run

    return run(*check.parse(argv))


def _status(argv: Sequence[str]) -> int:
    from flannelpy.cli import status

    control_socket, wanted = status.parse(argv)
    if isinstance(wanted, Path):
        from flannelpy.commands import prometheus_file

        return prometheus_file.run(control_socket, wanted)
    from flannelpy.commands.status import run

    return run(control_socket, wanted)


def _log_level(argv: Sequence[str]) -> int:
    from flannelpy.cli import log_level
    from flannelpy.commands.log_level import run

    return run(*log_level.parse(argv))


_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "check": _check,
    "cleanup": _cleanup,
    "copy-to-v3": _copy_to_v3,
    "log-level": _log_level,
    "status": _status,
}
