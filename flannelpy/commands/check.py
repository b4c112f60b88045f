"""check: follow the way of a packet link by link, and say which link is broken and what to do.

Nothing on this host or in etcd is changed.  Exit codes: 1 if any line is bad, else 0.
Counterpart: none; flanneld has only its log.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import click

from flannelpy import logs
from flannelpy.check import chain, judge_drops, rendering
from flannelpy.check.lines import Level, in_order
from flannelpy.check.observations import DaemonSeen
from flannelpy.control import client
from flannelpy.errors import DaemonUnavailable, FlannelError, one_line
from flannelpy.options import Options

# A daemon that answers does so in milliseconds; the whole check shall end within ten seconds.
_PATIENCE = 3.0


def run(options: Options, is_json: bool) -> int:
    """Print a line for each thing that was looked at; return the exit code.  Raises FlannelError."""
    if options.verbosity:
        logs.configure(options.verbosity)
    else:
        logging.getLogger("flannelpy").setLevel(logging.CRITICAL)  # the lines have what the modules log
    daemon = _ask_daemon(options.control_socket)
    try:
        lines = asyncio.run(chain.follow(options, daemon))
        if judge_drops.is_worth_asking(lines):
            after = _ask_daemon(options.control_socket)
            lines = in_order([*lines, *judge_drops.during(daemon, after, lines)])
    except FlannelError:
        raise
    except Exception as error:
        raise FlannelError(one_line(error)) from error
    click.echo(rendering.document(lines) if is_json else rendering.text(lines))
    return int(any(line.level is Level.BAD for line in lines))


def _ask_daemon(control_socket: Path) -> DaemonSeen:
    """Return what the daemon answers; the check itself finds out whether one runs."""
    try:
        answer = client.fetch(control_socket, with_peers=True, timeout=_PATIENCE)
    except DaemonUnavailable:
        return DaemonSeen()
    return DaemonSeen(answer.report, answer.peers)
