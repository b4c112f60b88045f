"""The glog line format, ``I1122 10:59:23.645089 11737 udp.py:222] Subnet added: 11.0.101.0/24``, on stderr.

Counterpart: github.com/golang/glog, of which only ``-v`` remains: 0 logs what an operator reads, 1 and more adds what a
developer needs to find a fault.
"""

import logging
import math
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import TypeVar

from flannelpy.causes import Causes, by_cause, grouped
from flannelpy.errors import FlannelError, one_line
from flannelpy.foreign import shown

SubjectT = TypeVar("SubjectT", bound=Hashable)
CauseT = TypeVar("CauseT", bound=Hashable)

#: Characters of a record's text, and of each line of its traceback.
LONGEST_TEXT = 2000

_LETTERS = {logging.DEBUG: "I", logging.INFO: "I", logging.WARNING: "W", logging.ERROR: "E", logging.CRITICAL: "F"}


#: The network that a task works for, which its log lines name; empty if there is only one.
network: ContextVar[str] = ContextVar("network", default="")


def log_error(log: logging.Logger, error: Exception, consequence: str = "") -> int:
    """Log an error in one line that ends in ``consequence``; return the exit code of a process that the error ends.

    With -v=1, also log the traceback of an error that is not a FlannelError.
    """
    log.error("%s%s", one_line(error), consequence, stacklevel=2)
    if isinstance(error, FlannelError):
        return error.exit_code
    log.debug("Traceback of the error:", exc_info=error, stacklevel=2)
    return FlannelError.exit_code


def _monotonic() -> float:
    return time.monotonic()


class LogLimit:
    """Limits messages that other hosts or programs can cause without end: the first few, then a summary.

    Every two minutes, the summary has the number of omitted messages.  After a long pause, the first few messages are
    logged again.
    """

    BURST = 20
    PAUSE = 120.0

    def __init__(
        self, log: logging.Logger, subject: str, burst: int = BURST, now: Callable[[], float] = _monotonic
    ) -> None:
        """``subject``: begins the summary, as in "ignored leases"; ``burst``: how many messages are logged at first.

        ``now``: a clock in seconds.
        """
        self._log = log
        self._now = now
        self._subject = subject
        self._burst = burst
        self._left = float(burst)
        self._filled_at = 0.0
        self._skipped = 0
        self._level = logging.INFO  # highest of the omitted messages
        self._reported_at = 0.0

    def message(self, level: int, text: str, stacklevel: int = 1) -> None:
        """Log ``text``, or count it for the next report.

        ``stacklevel``: how many frames up the caller is whose file and line the record names.
        """
        self.report()
        if not self._skipped and self._take():
            self._log.log(level, "%s", text, stacklevel=stacklevel + 1)
        else:
            self._reported_at = self._reported_at if self._skipped else self._now()
            self._level = max(self._level, level) if self._skipped else level
            self._skipped += 1

    def message_by_cause(self, level: int, what: str, subjects: Iterable[tuple[object, object]]) -> None:
        """Log ``what``, the subjects and their cause, in one line for each cause, from (subject, cause) pairs."""
        for line in by_cause(subjects):
            self.message(level, f"{what} {line}", stacklevel=2)

    def report(self) -> None:
        """Log the number of omitted messages, every two minutes if there are any."""
        if self._skipped and self._now() - self._reported_at >= self.PAUSE and self._take():
            self._log.log(self._level, "%s: %d more in the last two minutes", self._subject, self._skipped)
            self._skipped = 0

    def _take(self) -> bool:
        """Use up one line; return False if the limit is reached."""
        now = self._now()
        self._left = min(self._burst, self._left + (now - self._filled_at) / self.PAUSE)
        self._filled_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class FailureLog:
    """Logs why an operation fails: each cause once while it lasts, within a ``LogLimit`` if causes alternate.

    A cause is the text of an error with the values in it.  If the operation concerns several subjects, such as the
    peers' subnets, each subject has its own cause.
    """

    def __init__(self, log: logging.Logger, what_fails: str, burst: int = LogLimit.BURST) -> None:
        """``burst``: how many causes are logged before the limit applies."""
        self._what_fails = what_fails
        self._limit = LogLimit(log, what_fails, burst)
        self._causes = Causes(math.inf)  # the subjects are parts of this host, or leases in its tables

    def failed(
        self, cause: FlannelError | str, line: str = "", level: int = logging.ERROR, subject: Hashable = ""
    ) -> bool:
        """Log ``cause`` unless it is the subject's last one again; return whether it is a new one.

        ``line`` is logged instead of "operation: cause", if given.
        """
        self._limit.report()
        if not self._causes.is_new(str(cause), subject):
            return False
        self._limit.message(level, line or f"{self._what_fails}: {cause}", stacklevel=2)
        return True

    def recovered(self, line: str = "", subject: Hashable = "") -> bool:
        """Forget the subject's cause, so that the next failure is logged; return whether there was one.

        If there was one, ``line`` is logged within the limit of the failures, if given.
        """
        self._limit.report()
        has_failed = self._causes.clear(subject)
        if has_failed and line:
            self._limit.message(logging.INFO, line, stacklevel=2)
        return has_failed

    def note_all(
        self,
        failures: Mapping[SubjectT, CauseT],
        line: Callable[[Sequence[SubjectT], CauseT], str],
        level: int = logging.ERROR,
    ) -> None:
        """Log each subject's cause if it is a new one, in one line for each cause; all other subjects have recovered.

        ``line`` returns the text about the subjects of a cause.
        """
        self._limit.report()
        self._causes.keep_only(failures)
        new = [(subject, cause) for subject, cause in failures.items() if self._causes.is_new(str(cause), subject)]
        for cause, subjects in grouped(new).items():
            self._limit.message(level, line(subjects, cause), stacklevel=2)

    def note_logged(self, cause: FlannelError | str, subject: Hashable = "") -> None:
        """Make ``cause`` the subject's last one, because another line has it."""
        self._causes.is_new(str(cause), subject)

    def report(self) -> None:
        """Log how many lines the limit has suppressed, at most every two minutes; so do the other methods."""
        self._limit.report()


class GlogFormatter(logging.Formatter):
    """One line: level letter, month and day, local time in microseconds, process id, file and line, text.

    No text can begin a second record: newlines and control characters are escaped, and the lines of a traceback are
    indented.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, followed by the traceback if there is one."""
        stamp = time.strftime("%m%d %H:%M:%S", time.localtime(record.created))
        microseconds = int(record.created % 1 * 1_000_000)
        head = f"{_LETTERS[record.levelno]}{stamp}.{microseconds:06d} {record.process:05d}"
        name = network.get()
        text = f"{name}: {record.getMessage()}" if name else record.getMessage()
        line = f"{head} {record.filename}:{record.lineno}] {shown(text, LONGEST_TEXT)}"
        if not record.exc_info:
            return line
        traceback = self.formatException(record.exc_info).split("\n")
        return "\n".join([line, *(f"    {shown(each, LONGEST_TEXT)}" for each in traceback)])


def configure(verbosity: int) -> None:
    """Send flannelpy's log to stderr, and warnings and errors of libraries."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(GlogFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    _set_level(verbosity)


def change_level(verbosity: int) -> None:
    """Log as with ``-v`` of that value from now on; a line names the value."""
    _set_level(verbosity)
    logging.getLogger(__name__).info("Changed the log level to %d, as flannelpy log-level asked", verbosity)


def _set_level(verbosity: int) -> None:
    logging.getLogger("flannelpy").setLevel(logging.DEBUG if verbosity >= 1 else logging.INFO)
