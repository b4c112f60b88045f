"""Packages of any suite of Debian, unpacked below build/ and not installed.

Everything is fetched from the Debian mirror that this machine's apt knows, with lists and a cache of its own.  Nothing
outside of build/ is written, and no root is needed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

BUILD = Path(__file__).resolve().parents[2] / "build"
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


class UnpackError(Exception):
    """The packages cannot be fetched or unpacked on this machine; the message says why."""


class Program(NamedTuple):
    """A program that Debian packages.

    ``title`` is its name for people, ``directory`` its place below build/.  The version of the package ``main`` names
    the directory of a release.  ``finish`` completes a directory of unpacked packages.
    """

    title: str
    directory: str
    main: str
    finish: Callable[[Path], None] = lambda _: None


def unpack(program: Program, name: str, packages: Mapping[str, Sequence[str]]) -> Path:
    """Return the directory of the release ``name``, fetched if it is absent.  Raises UnpackError.

    ``packages`` are the names of packages, by suite.
    """
    build = BUILD / program.directory
    link = build / name
    if not link.exists():
        print(f"Unpacking {program.title} ({name}) into {os.path.relpath(build)}", flush=True)
        build.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=build, prefix=".unpacking-") as directory:
            _fetch(program, link, packages, Path(directory))
    return link.resolve()


def main(title: str, unpack: Callable[[str], object], names: Sequence[str], arguments: Sequence[str]) -> int:
    """Unpack the releases that are named in ``arguments``, else the first of ``names``.  Returns the exit code."""
    unknown = [name for name in arguments if name not in names]
    if unknown:
        print(f"There is no {title} {unknown[0]} here, only: {', '.join(names)}.")
        return 2
    try:
        for name in arguments or names[:1]:
            unpack(name)
    except UnpackError as error:
        print(error)
        return 1
    return 0


def run(*argv: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """Return the output of a command.  Raises UnpackError."""
    done = subprocess.run(argv, env=env, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnpackError(f"{' '.join(argv)} failed:\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout


def _fetch(program: Program, link: Path, packages: Mapping[str, Sequence[str]], directory: Path) -> None:
    archives = directory / "archives"
    archives.mkdir()
    mirror = _mirror(program)
    for suite, names in packages.items():
        _download(mirror, suite, names, directory / suite, archives)
    root = directory / "root"
    for archive in archives.iterdir():
        run("dpkg", "-x", str(archive), str(root))
    [main] = archives.glob(f"{program.main}_*")
    program.finish(root)
    _put(root, link.with_name(main.name.split("_")[1]), link)


def _put(root: Path, target: Path, link: Path) -> None:
    """Move the unpacked packages to their place; another process may have done the same in the meantime."""
    root.chmod(0o755)
    if not target.exists():
        root.rename(target)
    draft = root.parent / "link"
    draft.symlink_to(target.name)
    draft.rename(link)


def _mirror(program: Program) -> str:
    """Return the address of the Debian mirror that apt uses on this machine.  Raises UnpackError."""
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    codename = release.get("VERSION_CODENAME", "").strip('"')
    if release.get("ID") != "debian" or not shutil.which("apt-get"):
        raise UnpackError(f"{program.title} is taken from Debian's packages, so this needs a Debian.")
    targets = run("apt-get", "indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT)").splitlines()
    sites = [target.split()[0] for target in targets if target.split()[1:] == [codename, "main"]]
    if not sites:
        raise UnpackError(f"apt has no source with the component main of {codename}.")
    return sites[0]


def _download(mirror: str, suite: str, packages: Sequence[str], directory: Path, archives: Path) -> None:
    """Fetch packages of a suite, with an apt of its own in ``directory``.  Raises UnpackError."""
    for part in ("lists/partial", "archives/partial", "empty"):
        (directory / part).mkdir(parents=True)
    (directory / "status").touch()
    (directory / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {mirror} {suite} main\n")
    config = directory / "apt.conf"
    config.write_text(_APT_CONFIG.format(directory=directory))
    environment = {**os.environ, "APT_CONFIG": str(config)}
    run("apt-get", "update", "-qq", env=environment)
    run("apt-get", "download", "-qq", *packages, env=environment, cwd=archives)
