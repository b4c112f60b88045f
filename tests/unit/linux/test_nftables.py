"""What becomes of the answers of nft, of iptables-legacy-save, and of a command that is missing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from support.commands import Command

from flannelpy.errors import HostError
from flannelpy.linux import iptables, kernel_modules, nftables
from flannelpy.netfilter.iptables_listing import Tables
from flannelpy.netfilter.nft_listing import NftTable

CHAIN = {"family": "inet", "table": "fw", "name": "f", "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}


def printed(*entries: object) -> str:
    """A script that prints a listing."""
    text = json.dumps({"nftables": [{"metainfo": {"version": "1.0.6"}}, *entries]})
    return f"cat <<'END'\n{text}\nEND"


def listed() -> dict[str, NftTable | HostError]:
    return asyncio.run(nftables.tables())


def nft(chains: str, table: str, more: str = "") -> str:
    return f'case "$*" in\n*"list chains"*) {chains}\n;;\n*"list table inet fw"*) {table}\n;;\n{more}esac'


def test_tables_with_chains_that_forwarded_packets_pass_are_read(command: Command) -> None:
    others = [{"chain": {**CHAIN, "table": "a", "hook": "input"}}, {"chain": {**CHAIN, "table": "b", "family": "ip6"}}]
    others.append({"chain": {"family": "inet", "table": "c", "name": "x"}})
    command("nft", nft(printed({"chain": CHAIN}, *others), printed({"chain": CHAIN})))
    [(name, table)] = listed().items()
    assert name == "inet fw"
    assert isinstance(table, NftTable)
    assert [str(chain) for chain in table.base_chains()] == ["inet fw f"]


@pytest.mark.parametrize(("with_nat", "found"), [(False, []), (True, ["ip nat"])])
def test_the_table_nat_of_iptables_is_read_only_if_it_is_asked_for(
    command: Command, with_nat: bool, found: list[str]
) -> None:
    chain = {**CHAIN, "family": "ip", "table": "nat", "name": "OUTPUT", "hook": "output"}
    listing = printed({"chain": chain})
    command("nft", nft(listing, "", f'*"list table ip nat"*) {listing}\n;;\n'))
    assert list(asyncio.run(nftables.tables(("OUTPUT",), with_nat=with_nat))) == found
    assert asyncio.run(nftables.tables(("INPUT",), with_nat=True)) == {}


def test_a_table_that_is_gone_is_no_error(command: Command) -> None:
    error = "Error: No such file or directory; did you mean table \u2018x\u2019?"
    gone = f"printf '{error}\\nlist table\\n     ^^\\n' >&2; exit 1"
    command("nft", nft(printed({"chain": CHAIN}), gone))
    assert listed() == {}


def test_a_map_that_is_gone_leaves_its_table(command: Command) -> None:
    verdicts = {"map": {"family": "inet", "table": "fw", "name": "m", "type": "ifname", "map": "verdict"}}
    more = "*) echo 'Error: No such file or directory' >&2; exit 1\n;;\n"
    command("nft", nft(printed({"chain": CHAIN}), printed(verdicts, {"chain": CHAIN}), more))
    assert isinstance(listed()["inet fw"], NftTable)


def test_a_failure_is_of_one_table_and_names_the_cause(command: Command) -> None:
    other = {**CHAIN, "table": "other"}
    more = f'*"table inet other"*) {printed({"chain": other})}\n;;\n'
    failing = "printf 'Error: Operation not permitted\\nlist table\\n     ^^\\n' >&2; exit 1"
    command("nft", nft(printed({"chain": CHAIN}, {"chain": other}), failing, more))
    found = listed()
    assert isinstance(found["inet other"], NftTable)
    assert str(found["inet fw"]).endswith("list table inet fw failed: exit code 1: Error: Operation not permitted")


@pytest.mark.parametrize(
    "answer",
    ["true", "echo '[]'", printed({"chain": {"family": "inet"}}), printed({"chain": 5}), "echo '{\"nftables\": ['"],
)
def test_garbage_is_an_error_of_nft(command: Command, answer: str) -> None:
    command("nft", nft(answer, ""))
    with pytest.raises(HostError, match="printed no valid JSON"):
        listed()
    command("nft", nft(printed({"chain": CHAIN}), answer))
    assert "printed" in str(listed()["inet fw"])


def test_thousands_of_chains_hide_none(command: Command, tmp_path: Path) -> None:
    many = [{"chain": {"family": "ip", "table": "kube", "name": f"KUBE-SVC-{number}"}} for number in range(6000)]
    (tmp_path / "many").write_text(json.dumps({"nftables": [{"metainfo": {}}, *many, {"chain": CHAIN}]}))
    command("nft", nft(f"cat {tmp_path}/many", printed({"chain": CHAIN})))
    assert list(listed()) == ["inet fw"]


def test_a_list_that_is_too_long_is_an_error(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nftables, "_MOST_BYTES", 1 << 20)
    command("nft", nft(printed({"chain": CHAIN}), "head -c 3000000 /dev/zero"))
    assert "list table inet fw printed more than 1 MB" in str(listed()["inet fw"])


def test_without_nft_tables_that_may_be_there_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    modules = tmp_path / "modules"
    monkeypatch.setattr(kernel_modules, "_MODULES", modules)
    modules.write_text("x_tables 53248 2 - Live 0x0\n")
    assert listed() == {}
    modules.write_text("nf_tables 299008 3 - Live 0x0\n")
    with pytest.raises(HostError, match="the command nft is missing: install nftables"):
        listed()


def all_iptables() -> dict[str, Tables | HostError]:
    return asyncio.run(iptables.tables())


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kernel's list of tables of iptables-legacy."""
    monkeypatch.setattr(iptables, "_LEGACY_TABLES", tmp_path / "names")
    (tmp_path / "names").write_text("filter\n")
    return tmp_path / "names"


@pytest.mark.usefixtures("names")
def test_each_command_is_judged_by_itself(command: Command) -> None:
    command("iptables-nft-save", "echo 'Could not fetch rule set generation id' >&2; exit 1")
    command("iptables-legacy-save", "printf '*filter\\n:FORWARD DROP [0:0]\\nCOMMIT\\n'")
    found = all_iptables()
    assert "iptables-nft-save failed: exit code 1: Could not fetch" in str(found["iptables-nft-save"])
    legacy = found["iptables-legacy-save"]
    assert isinstance(legacy, Tables)
    assert legacy.found[0].policies == {"FORWARD": "DROP"}


def test_a_user_who_may_not_list_the_legacy_tables_asks_for_each_that_may_exist(
    command: Command, names: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Unreadable:
        def read_text(self) -> str:
            raise PermissionError

    monkeypatch.setattr(iptables, "_LEGACY_TABLES", Unreadable())
    monkeypatch.setattr(kernel_modules, "_MODULES", tmp_path / "modules")
    command("iptables-nft-save", "true")
    command(
        "iptables-legacy-save",
        "test $2 = raw && { echo 'Table does not exist' >&2; exit 1; }; echo \"*$2\"; echo COMMIT",
    )
    (tmp_path / "modules").write_text("x_tables 1 2\niptable_filter 1 0\n")
    assert list(all_iptables()) == ["iptables-nft-save", "iptables-legacy-save -t filter"]
    assert list(asyncio.run(iptables.tables(may_load=False))) == ["iptables-legacy-save -t filter"]
    (tmp_path / "modules").write_text("")
    found = all_iptables()
    assert list(found)[1:] == [f"iptables-legacy-save -t {name}" for name in ("filter", "mangle", "raw")]
    assert all(isinstance(tables, Tables) for tables in found.values())


@pytest.mark.usefixtures("names")
def test_the_flavour_that_has_our_rules_is_that_of_the_command_iptables_save(command: Command, tmp_path: Path) -> None:
    command("xtables-nft-multi", "true")
    command("xtables-legacy-multi", "true")
    flavours = {"iptables-nft-save": "nft", "iptables-legacy-save": "legacy", "iptables-save": "legacy"}
    for name, flavour in flavours.items():
        (tmp_path / name).symlink_to(tmp_path / f"xtables-{flavour}-multi")
    found = all_iptables()
    assert {name: isinstance(each, Tables) and each.has_own_rules for name, each in found.items()} == {
        "iptables-nft-save": False,
        "iptables-legacy-save": True,
    }


@pytest.mark.usefixtures("names")
def test_with_one_flavour_each_table_is_listed_once(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("xtables-legacy-multi", "true")
    for name in ("iptables-save", "iptables-legacy-save"):
        (tmp_path / name).symlink_to(tmp_path / "xtables-legacy-multi")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list(all_iptables()) == ["iptables-legacy-save"]


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    ("links", "unlisted"),
    [
        ({}, ["filter"]),
        ({"iptables-save": "xtables-nft-multi"}, ["filter"]),
        ({"iptables-save": "xtables-multi"}, []),  # of iptables before 1.8
        ({"iptables-save": "xtables-nft-multi", "iptables-legacy-save": "xtables-legacy-multi"}, []),
    ],
)
def test_tables_of_iptables_legacy_without_their_command_are_named(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: dict[str, str], unlisted: list[str]
) -> None:
    for name, program in links.items():
        command(program, "true")
        (tmp_path / name).symlink_to(tmp_path / program)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert iptables.unlisted_tables() == unlisted


@pytest.mark.usefixtures("names")
def test_without_iptables_save_no_rules_are_guarded(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("iptables-nft-save", "true")
    monkeypatch.setenv("PATH", str(tmp_path))
    [found] = all_iptables().values()
    assert isinstance(found, Tables)
    assert not found.has_own_rules


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("echo '*filter'; yes -- '-A FORWARD -j LOG'", "printed more than 1 MB instead of rules"),
        ("echo '*filter'; head -c 3000000 /dev/zero", "printed a line without an end instead of rules"),
        ("echo '*filter'", "printed a table without an end"),
        ("printf '*filter\\n:FORWARD ACCEPT [0:0]\\nCOMMIT\\n*raw\\n'", "printed a table without an end"),
    ],
)
def test_a_listing_that_is_too_long_or_has_no_end_is_an_error(
    command: Command, monkeypatch: pytest.MonkeyPatch, script: str, error: str
) -> None:
    monkeypatch.setattr("flannelpy.netfilter.iptables_listing._MOST_BYTES", 1 << 20)
    command("iptables-nft-save", script)
    assert str(all_iptables()["iptables-nft-save"]) == f"iptables-nft-save {error}"
