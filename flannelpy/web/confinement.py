"""Takes all rights from the HTTP process, before it reads the first byte of a stranger.

Source: capabilities(7), prctl(2), Documentation/userspace-api/no_new_privs.rst of the kernel.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from contextlib import suppress

# The user and group that the kernel shows for ids that it cannot map; they own no files.
_OVERFLOW_ID = 65534
# Of linux/prctl.h and linux/capability.h.
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_CAPABILITY_VERSION_3 = 0x20080522
# Packets come first when processor time is short.
_NICENESS = 10
_MOST_FILES = 1024


def confine(daemon: int) -> None:
    """Drop user, groups and capabilities and end with the process ``daemon``, this one's parent.

    The process must have one thread: the kernel keeps capabilities for each thread.  Raises OSError.
    """
    os.nice(_NICENESS)
    _limit_files()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    _drop_bounding_set(libc)
    _drop_user()
    _drop_capabilities(libc)
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    # Last, because the kernel forgets it when the user changes.
    _check(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    if os.getppid() != daemon:  # it ended before the call
        raise ProcessLookupError("the daemon has ended")


def _limit_files() -> None:
    """Limit the open files, or leave a lower limit as it is: without CAP_SYS_RESOURCE, it cannot be raised."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if limit == resource.RLIM_INFINITY else min(limit, _MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _drop_user() -> None:
    """Become a user without files.  A process that may not do so keeps its user, as in some containers."""
    with suppress(OSError):  # not permitted, or the user namespace does not have the id
        os.setgroups([])
        os.setresgid(_OVERFLOW_ID, _OVERFLOW_ID, _OVERFLOW_ID)
        os.setresuid(_OVERFLOW_ID, _OVERFLOW_ID, _OVERFLOW_ID)


def _drop_bounding_set(libc: ctypes.CDLL) -> None:
    """Drop what a program could gain by exec; without CAP_SETPCAP, no_new_privs has to suffice."""
    number = 0
    while libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) == 0:
        number += 1


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Drop the effective, permitted and inheritable capabilities, and with them the ambient ones."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    _check(libc.capset(header, none))


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
