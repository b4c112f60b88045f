"""The glog line format, ``I1122 10:59:23.645089 11737 udp.py:222] Subnet added: 11.0.101.0/24``, on stderr.

Counterpart: github.com/golang/glog, of which ``-v`` is the only knob here: 0 for what an operator reads, 1 and more for
what somebody needs who looks for a fault.
"""

import logging
import sys
import time
from contextvars import ContextVar

_LETTERS = {logging.DEBUG: "I", logging.INFO: "I", logging.WARNING: "W", logging.ERROR: "E", logging.CRITICAL: "F"}


#: Which of several networks a task works for, so that each line can say it; empty where there is but one.
network: ContextVar[str] = ContextVar("network", default="")


class GlogFormatter(logging.Formatter):
    """One line: level letter, month and day, local time in microseconds, process id, file and line, text."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the traceback below it when there is one."""
        stamp = time.strftime("%m%d %H:%M:%S", time.localtime(record.created))
        microseconds = int(record.created % 1 * 1_000_000)
        head = f"{_LETTERS[record.levelno]}{stamp}.{microseconds:06d} {record.process:05d}"
        name = network.get()
        text = f"{name}: {record.getMessage()}" if name else record.getMessage()
        line = f"{head} {record.filename}:{record.lineno}] {text}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure(verbosity: int) -> None:
    """Send flannelpy's log to stderr; libraries are heard from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(GlogFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("flannelpy").setLevel(logging.DEBUG if verbosity >= 1 else logging.INFO)
