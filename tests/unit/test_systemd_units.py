"""The unit files: what has to hold between flannelpy, systemd and Docker."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from flannelpy import cli
from flannelpy.errors import LeaseLost, UsageError

UNITS = Path(__file__).parents[2] / "scripts" / "systemd"
DAEMONS = ["flannelpy.service", "flannelpy.fleet.service"]
DROP_IN = "docker.service.d/40-flannel.conf"


class Unit(dict[str, dict[str, str]]):
    """The sections of a unit file.  A key that is given more than once holds its values in order, one per line."""

    def __init__(self, name: str) -> None:
        super().__init__()
        for line in (UNITS / name).read_text().splitlines():
            key, equals, value = line.partition("=")
            if line.startswith("["):
                section = self.setdefault(line.strip("[]"), {})
            elif equals and not line.startswith("#"):
                section[key] = f"{section[key]}\n{value}" if key in section else value


@pytest.fixture(params=DAEMONS)
def daemon(request: pytest.FixtureRequest) -> Unit:
    return Unit(request.param)


def test_docker_waits_for_readiness(daemon: Unit) -> None:
    assert daemon["Service"]["Type"] == "notify"
    assert daemon["Unit"]["Before"] == "docker.service"
    assert {"network-online.target", "etcd.service"} <= set(daemon["Unit"]["After"].split())
    assert daemon["Unit"]["Wants"] == "network-online.target"


def test_start_is_waited_for_and_never_given_up(daemon: Unit) -> None:
    assert daemon["Service"]["TimeoutStartSec"] in {"0", "infinity"}
    limits = [daemon["Unit"].get("StartLimitIntervalSec"), daemon["Service"].get("StartLimitInterval")]
    assert sorted(limits, key=str) == ["0", None]


def test_every_failure_but_a_wrong_flag_restarts(daemon: Unit) -> None:
    assert daemon["Service"]["Restart"] == "on-failure"
    assert daemon["Service"]["RestartSec"] == "5s"
    assert daemon["Service"]["RestartPreventExitStatus"].split() == [str(UsageError.exit_code)]
    assert str(LeaseLost.exit_code) not in {"0", daemon["Service"]["RestartPreventExitStatus"]}


def test_command_line_is_right(daemon: Unit) -> None:
    env, program, *flags = shlex.split(daemon["Service"]["ExecStart"])
    assert (env, program) == ("/usr/bin/env", "flannelpy")
    assert daemon["Service"]["Environment"].startswith("PATH=/opt/flannelpy/bin:")
    cli.parse([flag.replace("${COREOS_PRIVATE_IPV4}", "172.17.8.101") for flag in flags])


def test_subnet_file_outlives_the_daemon() -> None:
    service = Unit("flannelpy.service")["Service"]
    default = cli.parse([]).subnet_file
    assert Path("/run") / service["RuntimeDirectory"] == default.parent
    assert service["RuntimeDirectoryPreserve"] == "yes"


def test_variables_come_from_a_file_that_may_be_missing() -> None:
    assert Unit("flannelpy.service")["Service"]["EnvironmentFile"] == "-/etc/default/flannelpy"
    assert "/etc/default/flannelpy" in cli.usage()


def test_powers_are_those_that_the_network_needs() -> None:
    service = Unit("flannelpy.service")["Service"]
    assert service["CapabilityBoundingSet"].split() == ["CAP_NET_ADMIN", "CAP_NET_RAW"]
    assert "User" not in service


def test_fleet_unit_runs_everywhere() -> None:
    unit = Unit("flannelpy.fleet.service")
    assert unit["X-Fleet"] == {"Global": "true"}
    assert "Install" not in unit


def test_docker_follows_flannelpy() -> None:
    unit = Unit(DROP_IN)["Unit"]
    assert unit["Requires"] == unit["After"] == "flannelpy.service"
    assert (UNITS / unit["Requires"]).exists()


def test_docker_gets_its_options() -> None:
    service = Unit(DROP_IN)["Service"]
    make = shlex.split(service["ExecStartPre"])
    assert make[:2] == ["/usr/bin/env", "mk-docker-opts.sh"]
    assert (UNITS.parent / make[1]).exists()
    options = make[2:]
    assert options[options.index("-f") + 1] == str(cli.parse([]).subnet_file)
    assert service["EnvironmentFile"] == "-" + options[options.index("-d") + 1]

    reset, start = service["ExecStart"].split("\n")
    assert reset == ""
    assert set(start.split()) >= {"$DOCKER_OPT_BIP", "$DOCKER_OPT_MTU", "$DOCKER_OPT_IPMASQ"}


def test_docker_options_do_not_add_up() -> None:
    """-c would find its own DOCKER_OPTS of the last start in the environment, and put the new options after it."""
    assert "-i" in Unit(DROP_IN)["Service"]["ExecStartPre"].split()
    assert "-c" not in Unit(DROP_IN)["Service"]["ExecStartPre"].split()
