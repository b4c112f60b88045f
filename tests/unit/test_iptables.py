"""Masquerading rules, and the commands that put them in place."""

from __future__ import annotations

import asyncio
import os
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

import pytest

from flannelpy.errors import HostError
from flannelpy.linux.iptables import masquerade_rules, remove_masquerade, set_up_masquerade

if TYPE_CHECKING:
    from pathlib import Path

NETWORK = IPv4Network("11.0.0.0/16")

RESTORE = """iptables-restore --wait=10 --noflush
*nat
:FLANNEL - [0:0]
-A FLANNEL -s 11.0.0.0/16 -d 11.0.0.0/16 -j RETURN
-A FLANNEL -s 11.0.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE
-A FLANNEL ! -s 11.0.0.0/16 -d 11.0.0.0/16 -j MASQUERADE
COMMIT
"""
CHECK = "iptables --wait=10 -t nat -C POSTROUTING -j FLANNEL\n"
APPEND = "iptables --wait=10 -t nat -A POSTROUTING -j FLANNEL\n"
LIST = "iptables --wait=10 -t nat -S\n"

OTHERS = """-P PREROUTING ACCEPT
-P POSTROUTING ACCEPT
-N DOCKER
-N FLANNEL-POSTRTG
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -j FLANNEL-POSTRTG
-A POSTROUTING ! -s 12.0.0.0/16 -d 12.0.0.0/16 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
"""


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where stand-ins for the two commands write what they were called with.

    Beside it, ``jump`` is there when the jump is, and ``listing`` is what ``iptables -S`` prints.
    """
    log = tmp_path / "record"
    (tmp_path / "listing").touch()
    scripts = {
        "iptables-restore": f'echo "iptables-restore $*" >>{log}; cat >>{log}',
        "iptables": f"""echo "iptables $*" >>{log}
            case "$*" in
            *-S*) cat {tmp_path}/listing ;;
            *-C*) test -e {tmp_path}/jump ;;
            *) touch {tmp_path}/jump ;;
            esac""",
    }
    for name, script in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return log


def test_chain_is_replaced_as_a_whole_and_the_jump_is_made_once(record: Path) -> None:
    asyncio.run(set_up_masquerade([NETWORK]))
    assert record.read_text() == RESTORE + CHECK + APPEND
    record.unlink()
    asyncio.run(set_up_masquerade([NETWORK]))
    assert record.read_text() == RESTORE + CHECK


def test_rules_never_accept_for_others_and_never_masquerade_multicast() -> None:
    inside, leaving, entering = masquerade_rules(NETWORK)
    assert inside.endswith("-j RETURN")
    assert "! -d 224.0.0.0/4" in leaving
    assert "! -s 11.0.0.0/16 -d 11.0.0.0/16" in entering


def test_each_rule_is_in_the_log(record: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="flannelpy")
    asyncio.run(set_up_masquerade([NETWORK]))
    rules = [*masquerade_rules(NETWORK), "POSTROUTING -j FLANNEL"]
    assert caplog.messages == [f"Adding iptables rule: {rule}" for rule in rules]


def test_a_command_that_fails_is_an_error_with_its_last_words(record: Path) -> None:
    (record.parent / "iptables-restore").write_text("#!/bin/sh\ncat >/dev/null; echo one >&2; echo two >&2; exit 4\n")
    with pytest.raises(HostError) as caught:
        asyncio.run(set_up_masquerade([NETWORK]))
    assert str(caught.value) == "-ip-masq: iptables-restore --wait=10 --noflush failed: two"


def test_a_command_that_is_not_there_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError) as caught:
        asyncio.run(set_up_masquerade([NETWORK]))
    assert str(caught.value) == ("-ip-masq needs the command iptables-restore: install iptables, or leave -ip-masq out")


@pytest.mark.parametrize(
    ("listing", "network", "removed"),
    [
        (
            "-N FLANNEL\n-A POSTROUTING -j FLANNEL\n-A FLANNEL -s 11.0.0.0/16 -d 11.0.0.0/16 -j RETURN\n",
            None,
            ["POSTROUTING -j FLANNEL", "chain FLANNEL"],
        ),
        (
            "-N FLANNEL\n-A POSTROUTING -j FLANNEL\n-A POSTROUTING -j FLANNEL\n",
            NETWORK,
            ["POSTROUTING -j FLANNEL", "POSTROUTING -j FLANNEL", "chain FLANNEL"],
        ),
        ("-N FLANNEL\n", NETWORK, ["chain FLANNEL"]),
        (
            "-A POSTROUTING ! -s 11.0.0.0/16 -d 11.0.0.0/16 -j MASQUERADE\n",
            NETWORK,
            ["POSTROUTING ! -s 11.0.0.0/16 -d 11.0.0.0/16 -j MASQUERADE"],
        ),
        (  # flanneld v0.5.5, after its network was changed
            "-N FLANNEL\n"
            "-A POSTROUTING -s 10.9.0.0/16 -j FLANNEL\n"
            "-A POSTROUTING -s 11.0.0.0/16 -j FLANNEL\n"
            "-A POSTROUTING ! -s 11.0.0.0/16 -d 11.0.0.0/16 -j MASQUERADE\n"
            "-A FLANNEL -d 11.0.0.0/16 -j ACCEPT\n"
            "-A FLANNEL ! -d 224.0.0.0/4 -j MASQUERADE\n",
            NETWORK,
            [
                "POSTROUTING -s 10.9.0.0/16 -j FLANNEL",
                "POSTROUTING -s 11.0.0.0/16 -j FLANNEL",
                "POSTROUTING ! -s 11.0.0.0/16 -d 11.0.0.0/16 -j MASQUERADE",
                "chain FLANNEL",
            ],
        ),
    ],
)
def test_what_is_ours_or_the_originals_is_removed_with_one_command(
    record: Path, listing: str, network: IPv4Network | None, removed: list[str]
) -> None:
    (record.parent / "listing").write_text(OTHERS + listing)
    assert asyncio.run(remove_masquerade(network)) == removed
    rules = [f"-D {what}" for what in removed if not what.startswith("chain ")]
    chain = ["-F FLANNEL", "-X FLANNEL"] if "chain FLANNEL" in removed else []
    commands = "\n".join(["*nat", *rules, *chain, "COMMIT"])
    assert record.read_text() == f"{LIST}iptables-restore --wait=10 --noflush\n{commands}\n"


def test_where_nothing_is_ours_nothing_is_removed(record: Path) -> None:
    (record.parent / "listing").write_text(OTHERS)
    assert asyncio.run(remove_masquerade(NETWORK)) == []
    assert record.read_text() == LIST


def test_the_originals_rule_for_a_network_that_is_not_known_stays(record: Path) -> None:
    (record.parent / "listing").write_text("-A POSTROUTING ! -s 11.0.0.0/16 -d 11.0.0.0/16 -j MASQUERADE\n")
    assert asyncio.run(remove_masquerade(None)) == []


def test_without_the_command_there_is_nothing_to_remove(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert asyncio.run(remove_masquerade(NETWORK)) == []


def test_rules_that_cannot_be_listed_are_an_error(record: Path) -> None:
    (record.parent / "iptables").write_text("#!/bin/sh\necho one >&2; echo two >&2; exit 4\n")
    with pytest.raises(HostError) as caught:
        asyncio.run(remove_masquerade(NETWORK))
    assert str(caught.value) == "-ip-masq: iptables --wait=10 -t nat -S failed: two"


def test_while_other_networks_have_rules_only_ours_are_removed(record: Path) -> None:
    other = IPv4Network("11.7.0.0/16")
    rules = "".join(f"-A {rule}\n" for network in (NETWORK, other) for rule in masquerade_rules(network))
    (record.parent / "listing").write_text(f"{OTHERS}-N FLANNEL\n-A POSTROUTING -j FLANNEL\n{rules}")
    assert asyncio.run(remove_masquerade(NETWORK)) == masquerade_rules(NETWORK)
    commands = "\n".join(["*nat", *(f"-D {rule}" for rule in masquerade_rules(NETWORK)), "COMMIT"])
    assert record.read_text() == f"{LIST}iptables-restore --wait=10 --noflush\n{commands}\n"


def test_several_networks_share_the_chain(record: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The last one is new, so only its rules are told."""
    caplog.set_level("INFO", logger="flannelpy")
    other = IPv4Network("11.7.0.0/16")
    asyncio.run(set_up_masquerade([NETWORK, other]))
    rules = "".join(f"-A {rule}\n" for network in (NETWORK, other) for rule in masquerade_rules(network))
    assert f"*nat\n:FLANNEL - [0:0]\n{rules}COMMIT\n" in record.read_text()
    told = [*masquerade_rules(other), "POSTROUTING -j FLANNEL"]
    assert caplog.messages == [f"Adding iptables rule: {rule}" for rule in told]
