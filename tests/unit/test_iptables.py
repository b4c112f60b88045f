"""Masquerading rules, and the commands that put them in place."""

from __future__ import annotations

import asyncio
import os
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

import pytest

from flannelpy.errors import HostError
from flannelpy.linux.iptables import masquerade_rules, set_up_masquerade

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


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where stand-ins for the two commands write what they were called with; ``jump`` beside it is the rule's place."""
    log = tmp_path / "record"
    scripts = {
        "iptables-restore": f'echo "iptables-restore $*" >>{log}; cat >>{log}',
        "iptables": f"""echo "iptables $*" >>{log}
            case "$*" in *-C*) test -e {tmp_path}/jump ;; *) touch {tmp_path}/jump ;; esac""",
    }
    for name, script in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return log


def test_chain_is_replaced_as_a_whole_and_the_jump_is_made_once(record: Path) -> None:
    asyncio.run(set_up_masquerade(NETWORK))
    assert record.read_text() == RESTORE + CHECK + APPEND
    record.unlink()
    asyncio.run(set_up_masquerade(NETWORK))
    assert record.read_text() == RESTORE + CHECK


def test_rules_never_accept_for_others_and_never_masquerade_multicast() -> None:
    inside, leaving, entering = masquerade_rules(NETWORK)
    assert inside.endswith("-j RETURN")
    assert "! -d 224.0.0.0/4" in leaving
    assert "! -s 11.0.0.0/16 -d 11.0.0.0/16" in entering


def test_each_rule_is_in_the_log(record: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="flannelpy")
    asyncio.run(set_up_masquerade(NETWORK))
    rules = [*masquerade_rules(NETWORK), "POSTROUTING -j FLANNEL"]
    assert caplog.messages == [f"Adding iptables rule: {rule}" for rule in rules]


def test_a_command_that_fails_is_an_error_with_its_last_words(record: Path) -> None:
    (record.parent / "iptables-restore").write_text("#!/bin/sh\ncat >/dev/null; echo one >&2; echo two >&2; exit 4\n")
    with pytest.raises(HostError) as caught:
        asyncio.run(set_up_masquerade(NETWORK))
    assert str(caught.value) == "-ip-masq: iptables-restore --wait=10 --noflush failed: two"


def test_a_command_that_is_not_there_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError) as caught:
        asyncio.run(set_up_masquerade(NETWORK))
    assert str(caught.value) == ("-ip-masq needs the command iptables-restore: install iptables, or leave -ip-masq out")
