"""The unit files: what has to hold between flannelpy, systemd and Docker."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from support.systemd_units import UNITS, PeerEntries

from flannelpy import cli
from flannelpy.cli import flags
from flannelpy.errors import LeaseLost, UsageError

DAEMONS = ["flannelpy.service", "flannelpy.fleet.service"]
DROP_IN = "docker.service.d/40-flannel.conf"


@pytest.fixture(params=DAEMONS)
def daemon(request: pytest.FixtureRequest) -> PeerEntries:
    return PeerEntries(request.param)


def test_docker_waits_for_readiness(daemon: PeerEntries) -> None:
    assert daemon["Service"]["Type"] == "notify"
    assert daemon["Unit"]["Before"] == "docker.service"
    assert {"network-online.target", "etcd.service"} <= set(daemon["Unit"]["After"].split())
    assert daemon["Unit"]["Wants"] == "network-online.target"


def test_start_is_waited_for_and_never_given_up(daemon: PeerEntries) -> None:
    assert daemon["Service"]["TimeoutStartSec"] in {"0", "infinity"}
    limits = [daemon["Unit"].get("StartLimitIntervalSec"), daemon["Service"].get("StartLimitInterval")]
    assert sorted(limits, key=str) == ["0", None]


def test_every_failure_but_a_wrong_flag_restarts(daemon: PeerEntries) -> None:
    assert daemon["Service"]["Restart"] == "on-failure"
    assert daemon["Service"]["RestartSec"] == "5s"
    assert daemon["Service"]["RestartPreventExitStatus"].split() == [str(UsageError.exit_code)]
    assert str(LeaseLost.exit_code) not in {"0", daemon["Service"]["RestartPreventExitStatus"]}


def test_command_line_is_right(daemon: PeerEntries) -> None:
    env, program, *flags = shlex.split(daemon["Service"]["ExecStart"])
    assert (env, program) == ("/usr/bin/env", "flannelpy")
    assert daemon["Service"]["Environment"].startswith("PATH=/opt/flannelpy/bin:")
    cli.parse([flag.replace("${COREOS_PRIVATE_IPV4}", "172.17.8.101") for flag in flags])


def test_subnet_file_outlives_the_daemon() -> None:
    service = PeerEntries("flannelpy.service")["Service"]
    default = cli.parse([]).subnet_file
    assert Path("/run") / service["RuntimeDirectory"] == default.parent
    assert service["RuntimeDirectoryPreserve"] == "yes"


def test_variables_come_from_a_file_that_may_be_missing() -> None:
    assert PeerEntries("flannelpy.service")["Service"]["EnvironmentFile"] == "-/etc/default/flannelpy"
    assert "/etc/default/flannelpy" in flags.usage()


@pytest.mark.parametrize("key", ["AmbientCapabilities", "CapabilityBoundingSet"])
def test_powers_are_those_that_the_network_needs(key: str) -> None:
    """That they are enough is shown by netns/test_unprivileged.py."""
    service = PeerEntries("flannelpy.service")["Service"]
    assert service[key].split() == ["CAP_NET_ADMIN", "CAP_NET_RAW"]
    assert service["NoNewPrivileges"] == "yes"


def test_user_is_one_that_comes_with_the_unit() -> None:
    user = PeerEntries("flannelpy.service")["Service"]["User"]
    lines = (UNITS / "flannelpy.sysusers.conf").read_text().splitlines()
    assert [line.split()[:3] for line in lines if not line.startswith("#")] == [["u", user, "-"]]
    head, _, _ = (UNITS / "flannelpy.service").read_text().partition("[Unit]")
    assert "flannelpy.sysusers.conf /etc/sysusers.d/flannelpy.conf && systemd-sysusers flannelpy.conf\n" in head


def test_what_root_prepares_is_done_as_root_and_for_that_user() -> None:
    service = PeerEntries("flannelpy.service")["Service"]
    modules, lock = service["ExecStartPre"].split("\n")
    assert modules.startswith("+-")  # a kernel that has them built in needs no modprobe
    assert lock.startswith("+/")
    assert f"chgrp {service['User']} /run/xtables.lock" in lock


def test_sandbox_leaves_what_the_daemon_writes_and_opens() -> None:
    service = PeerEntries("flannelpy.service")["Service"]
    assert service["ProtectSystem"] == "strict"
    assert service["DeviceAllow"] == "/dev/net/tun rw"
    # The first two hide or lock accept_local, the others the TUN, the capabilities' network and the network.
    harmful = {"ProtectKernelTunables", "ProcSubset", "PrivateDevices", "PrivateUsers", "PrivateNetwork"}
    assert not harmful & service.keys()
    assert set(service["RestrictAddressFamilies"].split()) == {"AF_INET", "AF_INET6", "AF_NETLINK", "AF_UNIX"}


def test_old_systemd_gets_no_key_that_it_does_not_know() -> None:
    service = PeerEntries("flannelpy.fleet.service")["Service"]
    # Of v229, v231, v231 and v235; CoreOS of 2015 had v219 to v225.
    young = {"AmbientCapabilities", "MemoryDenyWriteExecute", "ReadWritePaths", "RuntimeDirectoryPreserve"}
    assert not young & service.keys()
    assert "User" not in service
    assert "+" not in service["ExecStartPre"][:2]
    assert service["ProtectSystem"] == "full"
    assert service["CapabilityBoundingSet"].split() == ["CAP_NET_ADMIN", "CAP_NET_RAW"]


def test_silence_of_a_minute_restarts(daemon: PeerEntries) -> None:
    assert daemon["Service"]["WatchdogSec"] == "60"


def test_fleet_unit_runs_everywhere() -> None:
    unit = PeerEntries("flannelpy.fleet.service")
    assert unit["X-Fleet"] == {"Global": "true"}
    assert "Install" not in unit


def test_docker_starts_after_flannelpy_and_does_not_stop_with_it() -> None:
    unit = PeerEntries(DROP_IN)["Unit"]
    assert unit == {"Wants": "flannelpy.service", "After": "flannelpy.service"}
    assert (UNITS / unit["Wants"]).exists()


def test_docker_is_looked_after_when_flannelpy_is_ready(daemon: PeerEntries) -> None:
    prefix, program = daemon["Service"]["ExecStartPost"].split()
    # As root; a host without Docker, or without the script, is no failure.  The older unit is root's from the outset.
    assert prefix in {"+-/usr/bin/env", "-/usr/bin/env"}
    assert prefix.startswith("+") == ("User" in daemon["Service"])
    assert os.access(UNITS.parent / program, os.X_OK)


def test_docker_gets_its_options() -> None:
    service = PeerEntries(DROP_IN)["Service"]
    make = shlex.split(service["ExecStartPre"])
    assert make[:2] == ["/usr/bin/env", "mk-docker-opts.sh"]
    assert (UNITS.parent / make[1]).exists()
    options = make[2:]
    assert options[options.index("-f") + 1] == str(cli.parse([]).subnet_file)
    assert service["EnvironmentFile"] == "-" + options[options.index("-d") + 1]

    reset, start = service["ExecStart"].split("\n")
    assert reset == ""
    # The first one is that of Debian's /etc/default/docker.
    assert start.split()[-4:] == ["$DOCKER_OPTS", "$DOCKER_OPT_BIP", "$DOCKER_OPT_MTU", "$DOCKER_OPT_IPMASQ"]


def test_docker_options_do_not_add_up() -> None:
    """-c would find its own DOCKER_OPTS of the last start in the environment, and put the new options after it."""
    assert "-i" in PeerEntries(DROP_IN)["Service"]["ExecStartPre"].split()
    assert "-c" not in PeerEntries(DROP_IN)["Service"]["ExecStartPre"].split()
