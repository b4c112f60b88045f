"""Every error of the project, with its origin and the reaction of the caller.

Each message is one line that an operator can act on: the flag, key or device, the value, and a valid alternative.
``exit_code`` is the exit code of the process if the error reaches the top.
"""

from __future__ import annotations

from pathlib import Path
from traceback import walk_tb

_PACKAGE = Path(__file__).parent


class FlannelError(Exception):
    """Root of the tree."""

    exit_code = 1


def one_line(error: Exception) -> str:
    """Return the error for the log.  Any other error than FlannelError is a bug, and the line asks for a report."""
    if isinstance(error, FlannelError):
        return str(error)
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"Unexpected error {_origin(error)}({what}): report it with the traceback, which -v=1 logs"


def _origin(error: Exception) -> str:
    """Return the place in flannelpy's code that an error comes from; empty if there is none."""
    places = [(Path(frame.f_code.co_filename), line) for frame, line in walk_tb(error.__traceback__)]
    own = [f"in {path.name}:{line} " for path, line in places if path.is_relative_to(_PACKAGE)]
    return own[-1] if own else ""


class UsageError(FlannelError):
    """The command line or a ``FLANNELD_*`` variable is wrong: the caller prints it and stops."""

    exit_code = 2


class HostError(FlannelError):
    """The machine lacks something (interface, address, device, port, permission): the caller stops."""


class OutputError(FlannelError):
    """What a command prints cannot be written: the caller stops."""


class AlreadyRunning(HostError):
    """Another flannelpy holds the instance lock: the caller stops."""


class ExternalAddressChanged(FlannelError):
    """The external interface lost its address: the caller stops, so that systemd restarts flannelpy."""


class ConfigError(FlannelError):
    """The network config in the store is wrong: the caller logs the error and reads the config again later."""


class OutOfSubnets(FlannelError):
    """Every subnet of the network is leased: the caller logs the error and tries again later."""


class DaemonUnavailable(FlannelError):
    """The daemon gives no usable answer: a command prints the error and stops, a page of HTTP has status 503."""

    exit_code = 3


class MessageError(FlannelError):
    """A line at the control socket is no message, or one of another schema: the daemon refuses it."""


class LeaseLost(FlannelError):
    """Another host holds our subnet: the caller stops forwarding and exits, so that Docker can follow."""

    exit_code = 3


class RegistryError(FlannelError):
    """Root of the errors of a registry."""


class RegistryUnavailable(RegistryError):
    """No endpoint gave a usable answer: the caller tries again later."""


class ApiSwitchedOff(RegistryUnavailable):
    """No endpoint has this version of etcd's API: the caller may ask another version.

    ``is_certain``: every endpoint answered so.  If it is false, some did not answer, and one of those may have the API.
    """

    def __init__(self, message: str, is_certain: bool = True) -> None:
        super().__init__(message)
        self.is_certain = is_certain


class WritesRefused(RegistryUnavailable):
    """The store answers, and an alarm of its own makes it refuse all writes: the caller tries again later."""

    sent = False  # the write has had no effect


class KeyNotFound(RegistryError):
    """The key does not exist."""


class KeyExists(RegistryError):
    """A create found a key of another host: the caller reads again."""


class CompareFailed(RegistryError):
    """The key is no longer at the expected version: the caller reads again."""


class HistoryGone(RegistryError):
    """The store cannot report the changes after the cursor one by one: the caller takes a new snapshot."""


class HistoryOverrun(HistoryGone):
    """The store is healthy, but its history no longer reaches back to the cursor.

    ``cursor`` is the present position of the store: a watch from there misses no later change.  The caller takes a new
    snapshot for the changes in between.
    """

    def __init__(self, message: str, cursor: int) -> None:
        super().__init__(message)
        self.cursor = cursor
