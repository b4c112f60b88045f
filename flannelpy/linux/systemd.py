"""Tells systemd how we are doing.  Source: sd_notify(3), sd_watchdog_enabled(3)."""

import contextlib
import os
import re
import socket

from flannelpy.foreign import shown

# Characters of an assignment; systemd shows a status on one line.
_LONGEST = 1000
# What systemd means by "never".
_INFINITY = 2**64 - 1


def notify(*lines: str) -> None:
    """Send assignments such as ``READY=1``, each on one line; nothing happens when no supervisor asked for them."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    # Whoever watches us may have left, or read nothing for long; that is no reason to stop forwarding.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(address)
        sock.send("\n".join(shown(line, _LONGEST) for line in lines).encode())


def watchdog_seconds() -> float | None:
    """Within how many seconds the next ``WATCHDOG=1`` is expected; None when nobody watches this very process."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = os.environ.get("WATCHDOG_USEC", "")
    # The length is that of 2**64: int() refuses, with an error of its own, what is longer than 4300 digits.
    if not re.fullmatch("[0-9]{1,20}", text) or not 0 < int(text) < _INFINITY:
        return None
    return int(text) / 1_000_000
