"""Docker as Debian packages it, unpacked into build/docker/<version> and not installed.

usage: python -m lab.docker_packages [debian12 | debian13 | newest]

It asks the Debian mirror that this machine's apt knows, with lists and a cache of its own: nothing outside of build/ is
written, and no root is needed.  A release that is there already is not asked for again.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BUILD = Path(__file__).resolve().parents[2] / "build" / "docker"
#: Debian 12, whose runc all releases run with; tini and busybox are linked statically there.
_BASE = "bookworm"
_BASE_PACKAGES = ("runc", "tini", "busybox-static", "libdevmapper1.02.1")
#: For each release the suite of Debian, and the packages that come from there.
RELEASES: Mapping[str, tuple[str, Sequence[str]]] = {
    "debian12": (_BASE, ("docker.io", "containerd")),
    "debian13": ("trixie", ("docker.io", "docker-cli", "containerd")),
    "newest": ("sid", ("docker.io", "docker-cli", "containerd")),
}
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_APT_CONFIG = """\
Dir::State "{directory}";
Dir::State::status "{directory}/status";
Dir::Cache "{directory}";
Dir::Etc::sourcelist "{directory}/sources.list";
Dir::Etc::sourceparts "{directory}/empty";
Dir::Etc::preferences "{directory}/status";
Dir::Etc::preferencesparts "{directory}/empty";
APT::Sandbox::User "";
APT::Install-Recommends "false";
Acquire::Languages "none";
"""
_IMAGE_DIRECTORIES = ("bin", "dev", "etc", "proc", "root", "sys", "tmp")


class UnpackError(Exception):
    """Docker cannot be had here; the message says why."""


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
    link = BUILD / name
    if not link.exists():
        print(f"Unpacking Docker ({name}) into {os.path.relpath(BUILD)}", flush=True)
        BUILD.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=BUILD, prefix=".unpacking-") as directory:
            _fetch(name, Path(directory))
    return Release(name, link.resolve())


def _fetch(name: str, directory: Path) -> None:
    suite, packages = RELEASES[name]
    archives = directory / "archives"
    archives.mkdir()
    mirror = _mirror()
    wanted = {_BASE: list(_BASE_PACKAGES)}
    wanted.setdefault(suite, []).extend(packages)
    for each, names in wanted.items():
        _download(mirror, each, names, directory / each, archives)
    root = directory / "root"
    for archive in archives.iterdir():
        _run("dpkg", "-x", str(archive), str(root))
    [docker] = archives.glob("docker.io_*")
    _write_image(root / "bin/busybox", root / "image.tar")
    _put(root, BUILD / docker.name.split("_")[1], BUILD / name)


def _put(root: Path, target: Path, link: Path) -> None:
    """Move what was unpacked to its place; another process may have done the same in the meantime."""
    root.chmod(0o755)
    if not target.exists():
        root.rename(target)
    draft = root.parent / "link"
    draft.symlink_to(target.name)
    draft.rename(link)


def _mirror() -> str:
    """Return the address of the Debian mirror that apt uses here.  Raises UnpackError."""
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    codename = release.get("VERSION_CODENAME", "").strip('"')
    if release.get("ID") != "debian" or not shutil.which("apt-get"):
        raise UnpackError("Docker is taken from Debian's packages, so this needs a Debian.")
    targets = _run("apt-get", "indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT)").splitlines()
    sites = [target.split()[0] for target in targets if target.split()[1:] == [codename, "main"]]
    if not sites:
        raise UnpackError(f"apt has no source with the component main of {codename}.")
    return sites[0]


def _download(mirror: str, suite: str, packages: Sequence[str], directory: Path, archives: Path) -> None:
    """Fetch packages of a suite, with an apt of our own in ``directory``.  Raises UnpackError."""
    for part in ("lists/partial", "archives/partial", "empty"):
        (directory / part).mkdir(parents=True)
    (directory / "status").touch()
    (directory / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {mirror} {suite} main\n")
    config = directory / "apt.conf"
    config.write_text(_APT_CONFIG.format(directory=directory))
    environment = {**os.environ, "APT_CONFIG": str(config)}
    _run("apt-get", "update", "-qq", env=environment)
    _run("apt-get", "download", "-qq", *packages, env=environment, cwd=archives)


def _run(*argv: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """Return what a command prints.  Raises UnpackError."""
    done = subprocess.run(argv, env=env, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnpackError(f"{' '.join(argv)} failed:\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout


def _write_image(busybox: Path, image: Path) -> None:
    commands = _run(str(busybox), "--list").split()
    with tarfile.open(image, "w") as tar:
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


def main(arguments: list[str]) -> int:
    """Return the exit code."""
    unknown = [name for name in arguments if name not in RELEASES]
    if unknown:
        print(f"There is no Docker {unknown[0]} here, only: {', '.join(RELEASES)}.")
        return 2
    try:
        for name in arguments or ["debian12"]:
            unpack(name)
    except UnpackError as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
