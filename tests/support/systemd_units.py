"""Unit files as tests read them."""

from __future__ import annotations

from pathlib import Path

UNITS = Path(__file__).parents[2] / "scripts" / "systemd"


class PeerEntries(dict[str, dict[str, str]]):
    """The sections of a unit file.  A key that is given more than once holds its values in order, one per line."""

    def __init__(self, name: str) -> None:
        super().__init__()
        for line in (UNITS / name).read_text().splitlines():
            key, equals, value = line.partition("=")
            if line.startswith("["):
                section = self.setdefault(line.strip("[]"), {})
            elif equals and not line.startswith("#"):
                section[key] = f"{section[key]}\n{value}" if key in section else value
