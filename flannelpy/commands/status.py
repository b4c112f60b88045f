"""status: asks the running daemon, and prints its networks, peers and problems.

Counterpart: none; flanneld has only its log.
"""

from __future__ import annotations

import os
import sys
from enum import Enum, auto
from pathlib import Path

from flannelpy.control import client
from flannelpy.diagnosis import is_well
from flannelpy.serving import wire
from flannelpy.serving.status_text import status_text


class Form(Enum):
    """What to print."""

    FULL = auto()
    BRIEF = auto()  # without peers
    JSON = auto()


def run(control_socket: Path, form: Form) -> int:
    """Print the state of the daemon; return 0 if it is well, 1 otherwise.  Raises DaemonUnavailable."""
    answer = client.fetch(control_socket, with_peers=form is not Form.BRIEF)
    _print(_rendered(answer, form))
    return 0 if is_well(answer.report) else 1


def _rendered(answer: wire.Answer, form: Form) -> str:
    if form is Form.JSON:
        return wire.document_text(answer)
    return status_text(answer.report, answer.peers)


def _print(text: str) -> None:
    """Print ``text``, or as much of it as the next program in a pipe reads."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still has to write
