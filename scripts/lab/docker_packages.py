"""Docker as Debian packages it, unpacked into build/docker/<version> and not installed.

usage: python -m lab.docker_packages [debian12 | debian13 | newest]

A release that is there already is not fetched again (debian_packages.py).
"""

from __future__ import annotations

import io
import sys
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lab import debian_packages
from lab.debian_packages import Program

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

#: Debian 12, whose runc all releases run with; tini and busybox are linked statically there.
_BASE = "bookworm"
_BASE_PACKAGES = ("runc", "tini", "busybox-static", "libdevmapper1.02.1")
#: For each release the suite of Debian, and the packages that come from there.
RELEASES: Mapping[str, tuple[str, Sequence[str]]] = {
    "debian12": (_BASE, ("docker.io", "containerd")),
    "debian13": ("trixie", ("docker.io", "docker-cli", "containerd")),
    "newest": ("sid", ("docker.io", "docker-cli", "containerd")),
}
_IMAGE_DIRECTORIES = ("bin", "dev", "etc", "proc", "root", "sys", "tmp")


@dataclass(frozen=True)
class Release:
    """One Docker, unpacked in ``directory``."""

    name: str
    directory: Path

    @property
    def version(self) -> str:
        """Such as ``20.10.24``."""
        return self.directory.name.partition("+")[0]

    @property
    def image(self) -> Path:
        """A tar file for ``docker import``: busybox, with a link for each of its commands."""
        return self.directory / "image.tar"


def unpack(name: str) -> Release:
    """Return a release of RELEASES, fetched if it is not there.  Raises UnpackError."""
    suite, packages = RELEASES[name]
    wanted = {_BASE: list(_BASE_PACKAGES)}
    wanted.setdefault(suite, []).extend(packages)
    program = Program("Docker", "docker", "docker.io", _write_image)
    return Release(name, debian_packages.unpack(program, name, wanted))


def _write_image(root: Path) -> None:
    busybox = root / "bin/busybox"
    commands = debian_packages.run(str(busybox), "--list").split()
    with tarfile.open(root / "image.tar", "w") as tar:
        for name in _IMAGE_DIRECTORIES:
            tar.addfile(_entry(name, tarfile.DIRTYPE))
        content = busybox.read_bytes()
        entry = _entry("bin/busybox", tarfile.REGTYPE)
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
        for command in sorted(set(commands) - {"busybox"}):
            entry = _entry(f"bin/{command}", tarfile.SYMTYPE)
            entry.linkname = "busybox"
            tar.addfile(entry)


def _entry(name: str, kind: bytes) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = kind, 0o755
    return entry


if __name__ == "__main__":
    sys.exit(debian_packages.main("Docker", unpack, tuple(RELEASES), sys.argv[1:]))
