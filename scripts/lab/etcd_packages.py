"""etcd as Debian packages it, unpacked into build/etcd/<version> and not installed.

usage: python -m lab.etcd_packages [newest | debian13]

Debian 12 has etcd 3.4, which the tests use by default; the later suites have 3.5.  The program is usr/bin/etcd in the
directory.  A release that is there already is not fetched again (debian_packages.py).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from lab import debian_packages
from lab.debian_packages import Program

if TYPE_CHECKING:
    from pathlib import Path

#: For each release the suite of Debian.
RELEASES = {"newest": "sid", "debian13": "trixie"}
_ETCD = Program("etcd", "etcd", "etcd-server")


def unpack(name: str) -> Path:
    """Return the directory of a release of RELEASES, fetched if it is absent.  Raises UnpackError."""
    return debian_packages.unpack(_ETCD, name, {RELEASES[name]: ("etcd-server", "etcd-client")})


if __name__ == "__main__":
    sys.exit(debian_packages.main("etcd", unpack, tuple(RELEASES), sys.argv[1:]))
