"""The two commands: what they are given, what becomes of their answers, and that none of them holds us up."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import pytest
from support.commands import Command

from flannelpy.errors import HostError
from flannelpy.linux import command as command_module
from flannelpy.linux import iptables
from flannelpy.netfilter import network_rules
from flannelpy.netfilter.ruleset import Listing

TABLE = "*nat\n:POSTROUTING ACCEPT [0:0]\n:FLANNEL - [0:0]\n-A FLANNEL -j RETURN\nCOMMIT\n# Completed\n"


def listing() -> Listing:
    return network_rules.listing("nat", [], [])


def saved() -> Listing:
    found = listing()
    asyncio.run(iptables.save("nat", found))
    return found


def failure(table: str = "nat") -> str:
    with pytest.raises(HostError) as caught:
        asyncio.run(iptables.save(table, listing()))
    return str(caught.value)


def test_one_table_is_listed(command: Command, tmp_path: Path) -> None:
    command("iptables-save", f"echo $* >{tmp_path}/given; cat <<'END'\n{TABLE}END")
    assert saved().rules == {b"FLANNEL": [b"-A FLANNEL -j RETURN\n"]}
    assert (tmp_path / "given").read_text() == "-t nat\n"


@pytest.mark.parametrize(
    "script",
    [
        "true",
        "echo 'x: Table does not exist (do you need to insmod?)' >&2; exit 1",
        "echo 'x: Could not fetch rule set generation id: Invalid argument' >&2; exit 1",
        "echo 'x: Failed to initialize nft: Protocol not supported' >&2; exit 1",
    ],
)
def test_a_table_that_the_kernel_does_not_have_is_empty(command: Command, script: str) -> None:
    command("iptables-save", script)
    assert saved().rules == {}


def test_all_commands_are_given_at_once_and_nothing_is_flushed(command: Command, tmp_path: Path) -> None:
    command("iptables-restore", f"echo $* >{tmp_path}/given; cat >>{tmp_path}/given")
    text = b"*nat\n" + b"-A FLANNEL -j RETURN\n" * 20_000 + b"COMMIT\n"
    asyncio.run(iptables.restore(text))
    assert (tmp_path / "given").read_bytes() == b"--noflush --wait=5\n" + text


def test_an_error_is_one_short_line_for_any_output(command: Command) -> None:
    garbage = r"printf 'nat\377\001\n\033[31m\377'"
    for script in (garbage, f"{garbage} >&2; exit 1", r"printf 'a\033[1m'"):
        command("iptables-save", script)
        assert failure() in (
            "iptables-save -t nat printed no table nat",
            "iptables-save -t nat failed: exit code 1",
        )
    command("iptables-save", "head -c 9999 /dev/zero | tr '\\0' x >&2; exit 1")
    assert len(failure()) < 300


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo one >&2; echo two >&2; exit 4", "failed: exit code 4: two"),
        ("exit 3", "failed: exit code 3"),
        ("kill -9 $$", "failed: exit code -9"),
        ("echo hello", "printed no table nat: hello"),
        ("printf '%s' '*nat'", "printed no table nat: *nat"),
        (r"head -c 100000 /dev/zero | tr '\0' '\377'", "printed no table nat"),
        ("head -c 3000000 /dev/zero", "printed a line without an end instead of rules"),
        ("echo \"# Table 'nat' is incompatible, use 'nft' tool.\"", "printed no table nat: # Table 'nat' is incompat"),
        ("head -c 100000000 /dev/zero >&2; exit 1", "failed: exit code 1"),
        ("exec cat /dev/zero >&2", "printed more than 256 MB instead of rules"),
    ],
)
def test_output_that_is_no_list_of_rules_is_an_error(command: Command, script: str, message: str) -> None:
    command("iptables-save", script)
    assert f"iptables-save -t nat {message}" in failure()


def test_a_command_that_ends_without_reading_is_judged_by_its_exit_code(command: Command) -> None:
    text = b"*nat\n" + b"-A FLANNEL -j RETURN\n" * 20_000 + b"COMMIT\n"
    command("iptables-restore", "exit 0")
    asyncio.run(iptables.restore(text))
    command("iptables-restore", "echo no permission >&2; exit 4")
    with pytest.raises(HostError, match=r"^iptables-restore --noflush --wait=5 failed: exit code 4: no permission$"):
        asyncio.run(iptables.restore(text))


def test_a_command_that_is_missing_or_cannot_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert failure() == "the command iptables-save is missing: install iptables"
    command("iptables-save", "")
    (tmp_path / "iptables-save").write_bytes(b"\x7fELF")
    assert failure() == "cannot run iptables-save: Exec format error"


def children_of(name: str) -> list[str]:
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = file.read_bytes()
        except OSError:
            continue
        if name.encode() in text:
            found.append(text.decode())
    return found


@pytest.mark.parametrize(
    "how", ["sleep 7654", "trap '' TERM; sleep 7654 & wait", "yes | while read x; do sleep 7654; done"]
)
def test_a_command_that_does_not_end_is_killed_with_all_that_it_started(
    command: Command, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(command_module, "_DEADLINE", 0.3)
    command("iptables-save", how)
    start = time.monotonic()
    assert failure() == "iptables-save -t nat did not end within 0.3 s"
    assert time.monotonic() - start < 3
    assert children_of("7654") == []


def test_a_command_that_hangs_does_not_hold_up_a_stop(command: Command) -> None:
    command("iptables-save", "sleep 7655")

    async def stop() -> float:
        task = asyncio.create_task(iptables.save("nat", listing()))
        await asyncio.sleep(0.3)
        start = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.monotonic() - start

    assert asyncio.run(stop()) < 0.5
    assert children_of("7655") == []


def test_an_endless_list_is_an_error(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_module, "_MOST_BYTES", 1 << 21)
    command("iptables-save", "yes -- '-A X -j FLANNEL'")
    assert re.fullmatch(r"iptables-save -t nat printed more than 2 MB instead of rules", failure())


# The other flavour


def install_flavour(directory: Path, flavour: str, programs: str) -> None:
    """Put commands there as Debian does: links to one program for each flavour."""
    for name in programs.split():
        program = directory / f"xtables-{name}-multi"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        for verb in ("save", "restore"):
            (directory / f"iptables-{name}-{verb}").symlink_to(program)
    if flavour:
        (directory / "iptables-save").symlink_to(f"iptables-{flavour}-save")


@pytest.mark.parametrize(
    ("flavour", "programs", "other"),
    [
        ("nft", "nft legacy", "legacy"),
        ("legacy", "nft legacy", "nft"),
        ("nft", "nft", ""),
        ("legacy", "legacy", ""),
        ("", "nft legacy", ""),
    ],
)
def test_the_other_flavour_is_that_of_the_commands_which_iptables_does_not_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flavour: str, programs: str, other: str
) -> None:
    install_flavour(tmp_path, flavour, programs)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert iptables.other_flavour() == other


def test_of_a_wrapper_the_flavour_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    install_flavour(tmp_path, "", "nft legacy")
    command("iptables-save", "exec iptables-nft-save")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert iptables.other_flavour() == ""


def test_a_flavour_is_a_matter_of_the_command(command: Command, tmp_path: Path) -> None:
    command("iptables-legacy-save", f"echo save $* >{tmp_path}/given; cat <<'END'\n{TABLE}END")
    command("iptables-legacy-restore", f"echo restore $* >>{tmp_path}/given")
    found = listing()
    asyncio.run(iptables.save("nat", found, "legacy"))
    asyncio.run(iptables.restore(b"", "legacy"))
    assert found.rules == {b"FLANNEL": [b"-A FLANNEL -j RETURN\n"]}
    assert (tmp_path / "given").read_text() == "save -t nat\nrestore --noflush --wait=5\n"


@pytest.mark.parametrize(
    ("names", "modules", "tables"),
    [
        ("nat\nfilter\n", "", ["nat", "filter"]),
        ("", "iptable_raw 16384 0 - Live\n", []),
        (None, "iptable_raw 16384 0 - Live 0x0\nx_tables 1 0 - Live\niptable_nat 1 0 - Live\n", ["nat", "raw"]),
        (None, "", ["nat", "mangle", "raw", "filter"]),  # the kernel may have them built in
    ],
)
def test_a_legacy_table_that_the_kernel_does_not_have_is_not_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str | None, modules: str, tables: list[str]
) -> None:
    """To list it would load its module.  Only root may read the names; then it counts which modules are loaded."""

    def read_text(path: Path) -> str:
        if path.name == "modules":
            return modules
        if names is None:
            raise PermissionError(path)
        return names

    monkeypatch.setattr(Path, "read_text", read_text)
    kinds = network_rules.KINDS
    assert [table for table in kinds if iptables.may_exist(table, "legacy")] == [
        each for each in kinds if each in tables
    ]


@pytest.mark.parametrize(
    ("modules", "may_exist"),
    [
        ("nf_tables 16384 0 - Live 0x0\n", True),
        ("x_tables 16384 0 - Live 0x0\n", False),
        ("", True),  # the kernel may have it built in
    ],
)
def test_tables_of_nft_need_its_module(monkeypatch: pytest.MonkeyPatch, modules: str, may_exist: bool) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _: modules)
    assert iptables.may_exist("nat", "nft") is may_exist
