"""iptables in memory, with the answers of the two commands that flannelpy runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flannelpy.errors import HostError
from flannelpy.netfilter.iptables_listing import Tables

if TYPE_CHECKING:
    import pytest

    from flannelpy.netfilter.nft_listing import NftTable
    from flannelpy.netfilter.ruleset import Listing

BUILT_IN = {
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "raw": ("PREROUTING", "OUTPUT"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
}


class FakeTables:
    """The rules of each chain of each table; ``failure``: what every command says instead of working."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[str, list[str]]] = {
            table: {chain: [] for chain in chains} for table, chains in BUILT_IN.items()
        }
        self.failure = ""
        self.is_deaf = False  # iptables-restore reports success and does nothing
        self.other: FakeTables | None = None  # the tables of iptables-legacy
        self.nft_tables: dict[str, NftTable | HostError] = {}
        self.generation: int | None = None  # of the rules, as the kernel counts it; None: it does not
        self.saved: list[str] = []  # tables, as often as they were listed
        self.restored: list[str] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take the place of both commands, and of nft."""
        monkeypatch.setattr("flannelpy.linux.iptables.save", self.save)
        monkeypatch.setattr("flannelpy.linux.iptables.restore", self.restore)
        monkeypatch.setattr("flannelpy.linux.iptables.tables", self.all_tables)
        monkeypatch.setattr("flannelpy.linux.iptables.is_installed", lambda: "is missing" not in self.failure)
        monkeypatch.setattr("flannelpy.linux.iptables.other_flavour", lambda: "legacy" if self.other else "")
        monkeypatch.setattr("flannelpy.linux.iptables.may_exist", lambda table, _: table in (self.other or self).tables)
        monkeypatch.setattr("flannelpy.linux.nftables.tables", self.all_nft_tables)
        monkeypatch.setattr("flannelpy.linux.rules_generation.current", lambda: self.generation)

    async def all_tables(self, *, may_load: bool = True, with_nat: bool = False) -> dict[str, Tables | HostError]:
        if self.failure:
            return {"iptables-save": HostError(self.failure)}
        found = Tables("iptables-save", with_nat=with_nat)
        for table in self.tables:
            found.feed(self.text(table).encode())
        return {"iptables-save": found}

    async def all_nft_tables(self, *_: object, with_nat: bool = False) -> dict[str, NftTable | HostError]:
        return self.nft_tables

    async def save(self, table: str, listing: Listing, flavour: str = "") -> None:
        if flavour:
            assert self.other
            await self.other.save(table, listing)
            return
        self.saved.append(table)
        if self.failure:
            raise HostError(self.failure)
        listing.feed(self.text(table).encode())
        assert listing.is_complete

    async def restore(self, text: bytes, flavour: str = "") -> None:
        if flavour:
            assert self.other
            await self.other.restore(text)
            return
        self.restored.append(text.decode())
        if self.failure:
            raise HostError(self.failure)
        if not self.is_deaf:
            self.apply(text.decode())

    def text(self, table: str) -> str:
        """What iptables-save prints."""
        chains = self.tables[table]
        heads = [f":{name} {'ACCEPT' if name in BUILT_IN[table] else '-'} [0:0]" for name in chains]
        rules = [f"-A {name}{rule and ' '}{rule}" for name, rules in chains.items() for rule in rules]
        return "\n".join(["# Generated", f"*{table}", *heads, *rules, "COMMIT", "# Completed", ""])

    def apply(self, text: str) -> None:
        """What iptables-restore --noflush does with its input: all of it, or KeyError and nothing."""
        head, *commands, commit = text.splitlines()
        assert commit == "COMMIT"
        chains = {name: list(rules) for name, rules in self.tables[head[1:]].items()}
        for command in commands:
            _apply(chains, command)
        self.tables[head[1:]] = chains


def _apply(chains: dict[str, list[str]], command: str) -> None:
    word, _, rest = command.partition(" ")
    name, _, rule = rest.partition(" ")
    if word.startswith(":"):
        chains[word[1:]] = []
    elif word == "-A":
        chains[name].append(rule)
    elif word == "-I":
        number, _, rule = rule.partition(" ")
        chains[name].insert(int(number) - 1, rule)
    elif word == "-D":
        chains[name].remove(rule)
    elif word == "-N":
        assert name not in chains
        chains[name] = []
    elif word == "-F":
        chains[name].clear()
    elif word == "-X":
        assert not chains.pop(name)
        users = [rule for rules in chains.values() for rule in rules if rule.endswith(f"-j {name}")]
        assert not users, f"{name} is in use by {users}"
    else:
        raise AssertionError(command)
