"""Prometheus as Debian packages it, unpacked into build/prometheus/<version> and not installed.

usage: python -m lab.prometheus_packages [debian12]

The programs are usr/bin/prometheus and usr/bin/promtool in the directory.  A release that is there already is not
fetched again (debian_packages.py).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from lab import debian_packages
from lab.debian_packages import Program

if TYPE_CHECKING:
    from pathlib import Path

#: For each release the suite of Debian.
RELEASES = {"debian12": "bookworm"}
_PROMETHEUS = Program("Prometheus", "prometheus", "prometheus")


def unpack(name: str) -> Path:
    """Return the directory of a release of RELEASES, fetched if it is absent.  Raises UnpackError."""
    return debian_packages.unpack(_PROMETHEUS, name, {RELEASES[name]: ("prometheus",)})


if __name__ == "__main__":
    sys.exit(debian_packages.main("Prometheus", unpack, tuple(RELEASES), sys.argv[1:]))
