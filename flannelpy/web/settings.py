"""What the daemon hands to the HTTP process on its command line.  Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """``controls``: the file descriptors of the connections to the daemon; ``listeners``: of the listening sockets.

    ``daemon``: the daemon's pid.  ``metrics_addresses``: the local addresses beside loopback at which every client may
    read the metrics; ``with_peers``: whether there are series for each peer.
    """

    controls: tuple[int, ...]
    listeners: tuple[int, ...]
    daemon: int
    metrics_addresses: tuple[str, ...]
    with_peers: bool

    def to_text(self) -> str:
        """Return the settings as one argument."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_text(text: str) -> Settings:
        """Return the settings that ``to_text`` has written."""
        fields = json.loads(text)
        tuples = {name: tuple(fields[name]) for name in ("controls", "listeners", "metrics_addresses")}
        return Settings(**{**fields, **tuples})
