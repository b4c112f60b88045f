"""Listings of iptables-save and nft, read in parts as they come from the commands."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from flannelpy.netfilter.iptables_listing import Tables
from flannelpy.netfilter.nft_listing import Entries

T = TypeVar("T")


def result(work: Generator[None, None, T]) -> T:
    """Return what a search finds."""
    try:
        while True:
            next(work)
    except StopIteration as end:
        found: T = end.value
        return found


def listing(
    text: bytes, program: str = "iptables-save", *, has_own_rules: bool = True, with_nat: bool = False
) -> Tables:
    """Read what iptables-save prints."""
    tables = Tables(program, has_own_rules=has_own_rules, with_nat=with_nat)
    for start in range(0, len(text), 50):
        tables.feed(text[start : start + 50])
    return tables


def feed(take: Callable[[bytes], object], entries: list[dict[str, Any]], size: int = 70) -> None:
    """Hand entries over as nft prints them."""
    text = json.dumps({"nftables": [{"metainfo": {"version": "1.0.6"}}, *entries]}).encode() + b"\n"
    listed = Entries(take)
    for start in range(0, len(text), size):
        listed.feed(text[start : start + size])
    listed.close()
