"""The host ID, which distinguishes this host from all others, even from one with the same addresses."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

# The machine's own, else (in a container without one) the running kernel's.  Source: machine-id(5), random(4).
_SOURCES = (Path("/etc/machine-id"), Path("/proc/sys/kernel/random/boot_id"))
_PURPOSE = b"flannelpy host id"


def host_id() -> str:
    """Return sixteen hexadecimal digits, or "" without a machine ID.

    They are a hash of the machine ID, because machine-id(5) asks programs not to publish the ID itself.
    """
    for source in _SOURCES:
        try:
            secret = source.read_bytes().strip()
        except OSError:
            continue
        if secret and secret != b"uninitialized":
            return hmac.digest(secret, _PURPOSE, hashlib.sha256).hex()[:16]
    return ""
