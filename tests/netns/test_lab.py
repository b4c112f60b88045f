"""The lab isolates its hosts from each other and from this machine, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import lab as lab_module
import pytest
from lab import INTERRUPTIBLE, CommandError, Lab, LabExistsError, lab_exists, remove_lab
from support.hosts import traces


def test_hosts_reach_each_other_and_have_a_run_directory_each(lab: Lab) -> None:
    one, other = lab.hosts[:2]
    one.run("ping", "-c1", "-W2", str(other.public_ip))
    one.run("sh", "-c", "echo one > /run/whose")
    other.run("sh", "-c", "echo other > /run/whose")
    assert one.run("cat", "/run/whose").stdout == "one\n"
    assert (other.run_dir / "whose").read_text() == "other\n"
    assert not Path("/run/whose").exists()


def test_a_rack_of_twenty_with_jumbo_frames(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=20, mtu=9000)
    whole_frame = ["ping", "-c1", "-W2", "-M", "do", "-s", str(9000 - 28)]
    lab.hosts[0].run(*whole_frame, str(lab.hosts[19].public_ip))


def test_the_error_of_a_failed_command_has_its_output(lab: Lab) -> None:
    with pytest.raises(CommandError, match=r"exit status 3\.\nno such luck"):
        lab.hosts[0].run("sh", "-c", "echo no such luck >&2; exit 3")


def test_nothing_stays() -> None:
    with Lab(hosts=2) as lab:
        lab.put_config()
        lab.start_daemons("-iface=eth1")
        # A process that ignores signals, and one whose parent has exited.
        lab.hosts[0].add_container().popen("sh", "-c", "trap '' TERM; setsid sleep 1000 & sleep 1000")
        assert traces(lab.prefix)
    assert not traces(lab.prefix)


def test_nothing_stays_when_the_lab_cannot_be_built() -> None:
    lab = Lab(mtu=1)
    with pytest.raises(CommandError, match="mtu less than device minimum"):
        lab.__enter__()
    assert not traces(lab.prefix)


@pytest.fixture
def background_job() -> Iterator[None]:
    """SIGINT is ignored, as in the processes of ``make test &`` and ``nohup make test``."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


def test_sigint_ends_a_command_also_in_a_background_job(background_job: None) -> None:
    with Lab(hosts=1) as lab:
        [host] = lab.hosts
        for node in (host, lab.switch):
            with node.popen("sh", "-c", "echo started; exec sleep 60") as process:
                assert process.stdout is not None
                assert process.stdout.readline() == "started\n"
                process.send_signal(signal.SIGINT)
                assert process.wait(10) == -signal.SIGINT


@pytest.mark.usefixtures("background_job")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nothing_stays_after_a_signal(number: signal.Signals) -> None:
    script = (
        "from lab import Lab\nwith Lab() as lab:\n  print(lab.prefix, flush=True)\n  lab.hosts[0].run('sleep', '60')"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(lab_module.__file__).parents[1])}
    with subprocess.Popen(
        [*INTERRUPTIBLE, sys.executable, "-c", script],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        prefix = process.stdout.readline().strip()
        assert traces(prefix)
        process.send_signal(number)
        assert process.wait(10) != 0
    assert not traces(prefix)


def test_a_lab_that_is_kept_stays_until_it_is_removed_by_name() -> None:
    with Lab(hosts=1) as lab:
        lab.keep()
    assert lab_exists(lab.prefix)
    with pytest.raises(LabExistsError):
        Lab(prefix=lab.prefix).__enter__()
    remove_lab(lab.prefix)
    assert not lab_exists(lab.prefix)
    assert not traces(lab.prefix)
    lab.remove()
