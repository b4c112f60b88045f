"""A kernel or a host that has no fast path: the cause is named, and nothing is left."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.bpf_programs import (
    config,
    shell,
)
from support.fast_path_host import STATE, namespace, own_links, run, tun

from flannelpy.backend.udp.fast_path import FastPath
from flannelpy.bpf.instructions import Helper, call
from flannelpy.datapath.fast_path import incoming, outgoing
from flannelpy.errors import HostError
from flannelpy.linux.netlink.client import Netlink

__all__ = ["namespace", "tun"]


@pytest.mark.parametrize("helper", Helper)
def test_each_helper_refused(tun: str, monkeypatch: pytest.MonkeyPatch, helper: Helper) -> None:
    """As on a kernel without that helper function: the verifier refuses the program, and nothing is left."""
    refused, unknown = call(helper), call(9999)

    async def scenario(netlink: Netlink) -> None:
        before = shell(STATE)
        for module in (outgoing, incoming):
            original = module.program

            def without(*arguments: Any, original: Any = original, **how: Any) -> Any:
                program = original(*arguments, **how)
                return program._replace(
                    instructions=tuple(unknown if one == refused else one for one in program.instructions)
                )

            monkeypatch.setattr(module, "program", without)
        with pytest.raises(HostError) as error:
            await FastPath(config(tun)).open(netlink)
        assert re.fullmatch(
            r"the kernel refused the BPF program flannel_(outgoing|incoming): Invalid argument "
            r"\(invalid func unknown#9999\)",
            str(error.value),
        )
        assert shell(STATE) == before
        assert own_links() == []

    run(scenario)


def test_a_kernel_that_attaches_nothing(tun: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As without cls_bpf: nothing is left."""

    async def refuse(*_: object) -> None:
        raise HostError("cannot attach a BPF program to flannel0-cut: Operation not supported")

    async def scenario(netlink: Netlink) -> None:
        monkeypatch.setattr(Netlink, "replace_filter", refuse)
        with pytest.raises(HostError, match="cannot attach"):
            await FastPath(config(tun)).open(netlink)
        assert own_links() == []

    run(scenario)


@pytest.mark.parametrize(
    ("capabilities", "answer"),
    {
        "-all,+bpf,+net_admin": "attached",
        "-bpf,-sys_admin": "the kernel refused the BPF map routes: Operation not permitted; it needs CAP_BPF, and the "
        "system call bpf",
    }.items(),
)
def test_capabilities(capabilities: str, answer: str) -> None:
    script = str(Path(__file__).parent / "fast_path_probe.py")
    path = os.pathsep.join(str(Path(__file__).parents[1] / each) for each in (".", "../scripts"))
    done = subprocess.run(
        ["setpriv", f"--bounding-set={capabilities}", sys.executable, script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"{answer}\n", "")


def test_an_interface_of_another_program_with_the_name_of_the_pair_is_an_error(tun: str) -> None:
    async def scenario(netlink: Netlink) -> None:
        shell("ip link add flannel0-gro type veth peer name other")
        with pytest.raises(HostError, match="flannel0-gro"):
            await FastPath(config(tun)).open(netlink)
        assert own_links() == ["flannel0-gro"]

    run(scenario)


def test_a_pair_of_another_program_with_our_names_is_an_error(tun: str) -> None:
    async def scenario(netlink: Netlink) -> None:
        shell("ip link add flannel0-gro type veth peer name flannel0-cut")
        with pytest.raises(HostError, match="flannel0-gro exists, and is not flannelpy's"):
            await FastPath(config(tun)).open(netlink)
        assert sorted(own_links()) == ["flannel0-cut", "flannel0-gro"]

    run(scenario)
