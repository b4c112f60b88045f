"""Messages to systemd, or another supervisor with its protocol.  Source: sd_notify(3), sd_watchdog_enabled(3)."""

import contextlib
import os
import re
import socket
from collections.abc import Sequence

from flannelpy.foreign import shown

# The most characters of an assignment; systemd shows a status on one line.
_LONGEST = 1000
# The value of WATCHDOG_USEC by which systemd means "never".
_INFINITY = 2**64 - 1


def notify(*lines: str, fds: Sequence[int] = ()) -> None:
    """Send assignments such as ``READY=1``, each on one line, with descriptors, if a supervisor asked for them."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    # The supervisor may have exited, or may not read its socket; forwarding must not stop for that.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(address)
        text = "\n".join(shown(line, _LONGEST) for line in lines).encode()
        socket.send_fds(sock, [text], fds) if fds else sock.send(text)


def watchdog_seconds() -> float | None:
    """Return within how many seconds the next ``WATCHDOG=1`` is due; None if systemd does not watch this process."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = os.environ.get("WATCHDOG_USEC", "")
    # 2**64 has 20 digits; without the limit, int() raises an error for more than 4300 digits.
    if not re.fullmatch("[0-9]{1,20}", text) or not 0 < int(text) < _INFINITY:
        return None
    return int(text) / 1_000_000
