"""Tells systemd how we are doing.  Source: sd_notify(3)."""

import contextlib
import os
import socket


def notify(*lines: str) -> None:
    """Send assignments such as ``READY=1``; nothing happens when nobody asked to be told."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    # Whoever watches us may have left, or read nothing for long; that is no reason to stop forwarding.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(address)
        sock.send("\n".join(lines).encode())
