"""The command line as a process of its own: exit codes, and what is on which stream."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import flannelpy

# The package that this process tests, installed or not, compiled or not.
SOURCE = {"PYTHONPATH": str(Path(flannelpy.__file__).parents[1])}


def run(arguments: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    clean = {name: text for name, text in os.environ.items() if not name.startswith("FLANNELD_")}
    return subprocess.run(
        [sys.executable, "-m", "flannelpy", *arguments],
        env=clean | SOURCE | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["--ifcae", "eth1"], {}, "unknown flag -ifcae: did you mean -iface?"),
        (["-v=much"], {}, "bad value 'much' for -v: must be a whole number from 0 to 2147483647"),
        (["-ip-masq=yes"], {}, "bad value 'yes' for -ip-masq: must be true or false"),
        ([], {"FLANNELD_V": "much"}, "bad value 'much' for FLANNELD_V: must be a whole number from 0 to 2147483647"),
        (
            ["-public-ip=172.17.8"],
            {},
            "bad value '172.17.8' for -public-ip: must be an IPv4 address, such as 172.17.8.101",
        ),
        (
            ["copy-to-v3", os.fsdecode(b"-etcd-prefix=/\xff\xfe")],
            {},
            "bad value for -etcd-prefix: must be UTF-8, which byte 0xff is not",
        ),
        (["-iface"], {}, "-iface needs a value: -iface=NAME|IP"),
        (["-iface=eth1", "eth2"], {}, "extra argument 'eth2': only flags are expected, -help lists them"),
        (["-logtostderr"], {}, "-logtostderr is not supported: the log always goes to stderr; leave it out"),
        (
            ["-etcd-endpoints=127.0.0.1:2379"],
            {},
            "-etcd-endpoints: '127.0.0.1:2379' is not of the form http://host:port or https://host:port",
        ),
    ],
)
def test_wrong(arguments: list[str], variables: dict[str, str], message: str) -> None:
    done = run(arguments, variables)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"flannelpy: {message}\n")


def test_version() -> None:
    done = run(["-version"], {})
    assert (done.returncode, done.stdout) == (0, "")
    assert re.fullmatch(r"flannelpy \d+\.\d+\.\d+ \((compiled|interpreted)\)\n", done.stderr)


def test_help() -> None:
    done = run(["--help"], {})
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("Usage: flannelpy [flags]\n")


def loaded(code: str) -> set[str]:
    """Return the modules that Python has imported after ``code``."""
    argv = [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"]
    done = subprocess.run(argv, env=os.environ | SOURCE, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


COMMAND = [sys.executable, "-m", "flannelpy"]
# What a command does that prints to stdout and does not wait for the end of the block.
PRINTS = "from flannelpy import cli; cli._daemon = lambda _: print('text') or 0; cli.main([])"
TO_STDERR, TO_STDOUT = [*COMMAND, "-version"], [sys.executable, "-c", PRINTS]
OUTPUTS = pytest.mark.parametrize(("command", "stream"), [(TO_STDERR, "stderr"), (TO_STDOUT, "stdout")])


@OUTPUTS
def test_a_reader_that_has_gone_ends_a_command_as_it_ends_those_of_coreutils(command: list[str], stream: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stdout, stderr = (writing, subprocess.PIPE) if stream == "stdout" else (subprocess.PIPE, writing)
    process = subprocess.Popen(command, env=os.environ | SOURCE, stdout=stdout, stderr=stderr)
    os.close(writing)
    assert set(process.communicate(timeout=30)) == {b"", None}
    assert process.returncode == -signal.SIGPIPE


@OUTPUTS
@pytest.mark.parametrize(
    ("redirection", "cause"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")]
)
def test_output_that_cannot_be_written_is_one_line_and_exit_1(
    command: list[str], stream: str, redirection: str, cause: str
) -> None:
    number = 2 if stream == "stderr" else 1
    line = f"flannelpy: failed to write to standard output: {cause}\n"
    shell = ["sh", "-c", f'"$@" {number}{redirection}', "sh", *command]
    done = subprocess.run(shell, env=os.environ | SOURCE, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line if stream == "stdout" else "")


def test_a_usage_error_that_cannot_be_printed_keeps_its_exit_code() -> None:
    for redirection in ("2>/dev/full", "2>&-"):
        shell = ["sh", "-c", f'"$@" -bogus {redirection}', "sh", *COMMAND]
        assert subprocess.run(shell, env=os.environ | SOURCE, check=False, timeout=30).returncode == 2


def test_what_is_loaded_before_the_daemon() -> None:
    """Docker waits for us, and -help should not wait at all."""
    assert not loaded("import flannelpy.cli") & {"asyncio", "etcd", "pyroute2", "ssl"}


def test_what_is_loaded_when_it_is_needed() -> None:
    """What only some networks need costs no other start processor time and memory."""
    libraries = ["dns", "etcd", "pyroute2", "urllib3"]
    backends = [f"flannelpy.backend.{name}" for name in ("alloc", "host_gw", "kernel_entries", "udp", "vxlan")]
    stores = ["flannelpy.leasing.both_stores", "flannelpy.leasing.second_lease", "flannelpy.registry.bounded_http"]
    rest = ["flannelpy.packet.group", "flannelpy.subnet.copy_plan", "flannelpy.host.bypass_guard"]
    code = "import flannelpy.cli, flannelpy.commands.daemon"
    assert not loaded(code) & {*libraries, *backends, *stores, *rest}


def test_listings_of_the_kernel_do_without_pyroute2() -> None:
    code = """
import asyncio
from flannelpy.linux.netlink.client import Netlink

async def listed():
    async with Netlink() as netlink:
        assert await netlink.addresses()

asyncio.run(listed())
"""
    assert "pyroute2" not in loaded(code)


def test_the_daemon_loads_nothing_of_the_commands() -> None:
    of_commands = {
        *("control.client", "commands.status", "commands.log_level", "commands.cleanup", "commands.copy_to_v3"),
        *("commands.check", "commands.prometheus_file", "check", "serving.status_text", "serving.metrics"),
        *("cli.copy_to_v3", "cli.status", "cli.log_level", "cli.check", "cli.control", "cli.subcommand"),
    }
    daemon = loaded("import flannelpy.cli, flannelpy.commands.daemon")
    assert "flannelpy.control.server" in daemon
    assert not daemon & {f"flannelpy.{name}" for name in of_commands}


@pytest.mark.parametrize("command", ["status", "log-level 1"])
def test_commands_that_ask_the_daemon_load_nothing_of_it(command: str, tmp_path: Path) -> None:
    argv = [*command.split(), f"-subnet-file={tmp_path}/subnet.env"]
    code = f"from flannelpy import cli\ntry: cli.main({argv})\nexcept SystemExit as end: assert end.code == 3"
    modules = loaded(code)
    assert "flannelpy.control.client" in modules
    assert not modules & {"asyncio", "etcd", "pyroute2", "ssl", "urllib3", "logging"}
    names = ("network", "commands.daemon", "control.server", "host", "backend", "leasing", "linux", "rtnetlink")
    assert not modules & {f"flannelpy.{name}" for name in names}


def test_python_etcd_is_loaded_without_dnspython() -> None:
    code = "from flannelpy.registry.python_etcd import etcd; etcd.Client"
    assert not {"dns.resolver", "dns.message"} & loaded(code)
    assert {"dns.resolver", "dns.message"} <= loaded(f"{code}\nfrom dns.resolver import query")


def test_of_pyroute2_what_changes_devices_is_loaded() -> None:
    code = """
import asyncio
from contextlib import suppress
from flannelpy.errors import HostError
from flannelpy.linux.netlink.client import Netlink
from flannelpy.rtnetlink.links import Link

async def changed():
    async with Netlink() as netlink:
        with suppress(HostError):
            await netlink.remove_link(Link(9_999_999, "gone", 1500))

asyncio.run(changed())
"""
    rest = {"pyroute2", "pyroute2.ndb.main", "pyroute2.conntrack"}
    of_change = loaded(code)
    assert "pyroute2.iproute" in of_change
    assert not rest & of_change
    assert rest <= loaded(f"{code}\nfrom pyroute2 import NDB, IPRoute, netns")
