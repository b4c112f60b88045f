"""Every error of the project: who is at fault, and what the caller does about it.

The message of each is one line that a person can act on: it names the flag, key or device, the value, and what
would be right.  ``exit_code`` is what the process returns when the error reaches the top.
"""

from __future__ import annotations

from pathlib import Path
from traceback import walk_tb

_PACKAGE = Path(__file__).parent


class FlannelError(Exception):
    """Root of the tree."""

    exit_code = 1


def one_line(error: Exception) -> str:
    """The error for the log: our own errors are lines that a person can act on; all others are faults of flannelpy."""
    if isinstance(error, FlannelError):
        return str(error)
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"Unexpected error {_origin(error)}({what}): report it with the traceback, which -v=1 logs"


def _origin(error: Exception) -> str:
    """Where in our code an error comes from, if it comes from there."""
    places = [(Path(frame.f_code.co_filename), line) for frame, line in walk_tb(error.__traceback__)]
    own = [f"in {path.name}:{line} " for path, line in places if path.is_relative_to(_PACKAGE)]
    return own[-1] if own else ""


class UsageError(FlannelError):
    """The command line or a ``FLANNELD_*`` variable is wrong: the caller prints it and stops."""

    exit_code = 2


class HostError(FlannelError):
    """The machine lacks something (interface, address, device, port, permission): the caller stops."""


class AlreadyRunning(HostError):
    """Another daemon of ours has what is to be ours: the caller stops."""


class ExternalAddressChanged(FlannelError):
    """The machine is no longer the one that we were started on: the caller stops, to be started anew."""


class ConfigError(FlannelError):
    """The network config in the store is wrong: the caller says so and reads it again later."""


class OutOfSubnets(FlannelError):
    """Every subnet of the network is leased: the caller says so and tries again later."""


class LeaseLost(FlannelError):
    """Somebody else holds our subnet: the caller stops forwarding and leaves, so that Docker can follow."""

    exit_code = 3


class RegistryError(FlannelError):
    """Root of what a registry raises."""


class RegistryUnavailable(RegistryError):
    """No endpoint gave an answer that can be used: the caller tries again later."""


class KeyNotFound(RegistryError):
    """The key does not exist."""


class KeyExists(RegistryError):
    """A create found the key taken by somebody else: the caller reads again."""


class CompareFailed(RegistryError):
    """The key is no longer at the version that was compared with: the caller reads again."""


class HistoryGone(RegistryError):
    """Changes after the cursor can no longer be told one by one: the caller takes a new snapshot."""


class HistoryOverrun(HistoryGone):
    """The store is in order, but more has happened since the cursor than it remembers.

    ``cursor`` is where the store stands: a watch from there hears everything that happens from now on.  The caller
    takes a new snapshot for what happened in between.
    """

    def __init__(self, message: str, cursor: int) -> None:
        super().__init__(message)
        self.cursor = cursor
