"""check: follow the way of a packet link by link, and say which link is broken and what to do.

Nothing on this host or in etcd is changed.  Exit codes: 1 if any line is bad, else 0.
Counterpart: none; flanneld has only its log.
"""

from __future__ import annotations

import asyncio
import logging

import click

from flannelpy import logs
from flannelpy.check import chain, rendering
from flannelpy.check.lines import Level
from flannelpy.errors import FlannelError, one_line
from flannelpy.options import Options
from flannelpy.report import DaemonReport


def run(options: Options, is_json: bool, report: DaemonReport | None = None) -> int:
    """Print a line for each thing that was looked at; return the exit code.

    ``report``: that of the running daemon, if it gives one.  Raises FlannelError.
    """
    if options.verbosity:
        logs.configure(options.verbosity)
    else:
        logging.getLogger("flannelpy").setLevel(logging.CRITICAL)  # the lines have what the modules log
    try:
        lines = asyncio.run(chain.follow(options, report))
    except FlannelError:
        raise
    except Exception as error:
        raise FlannelError(one_line(error)) from error
    click.echo(rendering.document(lines) if is_json else rendering.text(lines))
    return int(any(line.level is Level.BAD for line in lines))
