"""flannelpy-docker.sh: Docker is restarted only if its options have changed; under every shell that is here."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[3] / "scripts"
SHELLS = [shell for shell in ("sh", "dash", "bash", "busybox") if shutil.which(shell)]

SUBNET = "FLANNEL_NETWORK=11.0.0.0/16\nFLANNEL_SUBNET=11.0.13.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"
NOTHING: list[str] = []
START = ["reset-failed docker.service", "start --no-block docker.service"]
RESTART = ["reset-failed docker.service", "restart --no-block docker.service"]

SYSTEMCTL = """\
#!/bin/sh
case $1 in
is-active) echo $STATE ;;
is-enabled) exit $DISABLED ;;
*) echo "$*" >>calls ;;
esac
"""


class World:
    """A directory with a subnet file, the file that Docker was started with, and a systemctl that notes its calls."""

    def __init__(self, directory: Path, shell: str) -> None:
        self.directory = directory
        self._shell = [shell, "sh"] if shell == "busybox" else [shell]
        self._path = f"{directory}:{SCRIPTS}:{os.environ['PATH']}"
        systemctl = directory / "systemctl"
        systemctl.write_text(SYSTEMCTL)
        systemctl.chmod(0o755)
        self.subnet_file = directory / "subnet.env"
        self.subnet_file.write_text(SUBNET)
        self.docker_file = directory / "docker.env"
        self.start_docker()

    def start_docker(self, form: Sequence[str] = ("-i",), **options: str) -> None:
        """What the drop-in of docker.service, or a unit of an operator's own, does before Docker starts."""
        files = ["-f", str(self.subnet_file), "-d", str(self.docker_file)]
        self._run(str(SCRIPTS / "mk-docker-opts.sh"), *form, *files, **options)

    def calls(self, state: str, *, enabled: bool = True) -> list[str]:
        """The systemctl commands of the script when flannelpy is ready and Docker has this state."""
        noted = self.directory / "calls"
        noted.write_text("")
        files = [str(self.subnet_file), str(self.docker_file)]
        self._run(str(SCRIPTS / "flannelpy-docker.sh"), *files, STATE=state, DISABLED="0" if enabled else "1")
        return noted.read_text().splitlines()

    def _run(self, *argv: str, **variables: str) -> None:
        environment = {"PATH": self._path, **variables}
        done = subprocess.run(
            [*self._shell, *argv], cwd=self.directory, env=environment, capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        self.output = done.stdout


@pytest.fixture(params=SHELLS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return World(tmp_path, request.param)


def test_a_docker_whose_options_are_right_runs_on(world: World) -> None:
    assert world.calls("active") == START  # which does nothing to a unit that runs


@pytest.mark.parametrize(
    ("old", "new"), [("11.0.13.1/24", "11.0.14.1/24"), ("MTU=1472", "MTU=1450"), ("IPMASQ=false", "IPMASQ=true")]
)
@pytest.mark.parametrize("state", ["active", "reloading", "activating", "failed"])
def test_a_docker_with_other_options_is_restarted(world: World, state: str, old: str, new: str) -> None:
    world.subnet_file.write_text(SUBNET.replace(old, new))
    assert world.calls(state) == RESTART
    world.start_docker()
    assert world.calls(state) == START


def test_a_network_that_changes_around_the_subnet_is_no_change_for_docker(world: World) -> None:
    world.subnet_file.write_text(SUBNET.replace("11.0.0.0/16", "11.0.0.0/8"))
    assert world.calls("active") == START


FORMS = pytest.mark.parametrize("form", [(), ("-i",), ("-c",), ("-c", "-k", "OPTIONS")], ids=" ".join)
MASQUERADING = pytest.mark.parametrize("masq", [(), ("-m",)], ids=" ".join)
#: What a caller of mk-docker-opts.sh may add.
OWN = [
    {},
    {"DOCKER_OPTS": "--dns=11.0.0.2 --ip-masq=false --mtu=9000", "OPTIONS": "--mtu=1400"},
    {"DOCKER_OPT_DNS": "--dns=11.0.0.2", "DOCKER_OPT_ZMTU": "--mtu=9000"},
]


@FORMS
@MASQUERADING
@pytest.mark.parametrize("own", OWN, ids=str)
def test_options_are_known_in_each_form(
    world: World, form: tuple[str, ...], masq: tuple[str, ...], own: dict[str, str]
) -> None:
    world.start_docker((*form, *masq), **own)
    assert world.calls("active") == START
    for old, new in (("11.0.13.1/24", "11.0.13.1/25"), ("MTU=1472", "MTU=147")):
        world.subnet_file.write_text(SUBNET.replace(old, new))
        assert world.calls("active") == RESTART


@FORMS
@MASQUERADING
def test_masquerading_counts_where_docker_has_its_option(
    world: World, form: tuple[str, ...], masq: tuple[str, ...]
) -> None:
    world.start_docker((*form, *masq))
    world.subnet_file.write_text(SUBNET.replace("IPMASQ=false", "IPMASQ=true"))
    assert world.calls("active") == (START if masq else RESTART)


@pytest.mark.parametrize("text", ["", "\n", 'DOCKER_OPTS=""\n', 'DOCKER_OPTS="--mtu=1400"\n', "#--bip=\n", "\xff\n"])
def test_a_file_without_our_options_is_named_and_restarts_nothing(world: World, text: str) -> None:
    world.docker_file.write_text(text)
    assert world.calls("active") == START
    assert world.output == f"{world.docker_file} has no --bip, so Docker's options are unknown: not restarting it\n"


def test_options_of_an_operators_own_are_no_change(world: World) -> None:
    world.start_docker(DOCKER_OPT_DNS="--dns=11.0.0.2")
    assert world.calls("active") == START


@pytest.mark.parametrize("state", ["inactive", "deactivating", "unknown", ""])
def test_a_docker_that_was_stopped_or_waits_for_us_is_left_alone(world: World, state: str) -> None:
    world.subnet_file.write_text(SUBNET.replace("11.0.13", "11.0.14"))
    assert world.calls(state) == NOTHING


def test_a_docker_that_has_failed_is_started_if_it_is_enabled(world: World) -> None:
    assert world.calls("failed") == START
    assert world.calls("failed", enabled=False) == NOTHING


def test_a_docker_without_the_drop_in_is_not_restarted(world: World) -> None:
    world.docker_file.unlink()
    assert world.calls("active") == START


def test_without_a_subnet_file_nothing_is_known_to_have_changed(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    world.subnet_file.write_text("")
    with pytest.raises(AssertionError, match="has no FLANNEL_SUBNET"):
        world.calls("active")
    assert (world.directory / "calls").read_text().splitlines() == START
