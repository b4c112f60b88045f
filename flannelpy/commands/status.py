"""status: asks the running daemon, and prints its networks, peers and problems.

Counterpart: none; flanneld has only its log.
"""

from __future__ import annotations

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
    sys.stdout.write(_rendered(answer, form))
    return 0 if is_well(answer.report) else 1


def _rendered(answer: wire.Answer, form: Form) -> str:
    if form is Form.JSON:
        return wire.document_text(answer)
    return status_text(answer.report, answer.peers)
