"""What flannelpy knows of a store in etcd v3: the names of its keys, its identity, and the version of its config."""

from __future__ import annotations

import asyncio
import posixpath
from typing import TYPE_CHECKING, Any

from flannelpy.registry.etcd_v3_messages import Header, Node, encoded

if TYPE_CHECKING:
    from flannelpy.registry.base import KeyValue


class Keys:
    """The keys of one network, below ``prefix``.  They begin with a slash if ``prefix`` does.

    ``span`` is the range from ``…/config`` to the end of ``…/subnets/``, which one watch reports.  Keys of other
    programs may be in it.
    """

    def __init__(self, prefix: str) -> None:
        self.config = _joined(prefix, "config")
        self.root = posixpath.dirname(self.config)
        self._subnets = f"{_joined(prefix, 'subnets')}/"
        self.span = {"key": encoded(self.config), "range_end": encoded(f"{self._subnets[:-1]}0")}  # "0" follows "/"

    def of(self, name: str) -> str:
        """Return the key of an entry."""
        return self._subnets + name

    def name(self, key: str) -> str | None:
        """Return the name of the entry at ``key``; None for a key that is no direct child of ``subnets``."""
        name = key.removeprefix(self._subnets)
        return None if name == key or "/" in name else name

    def entry(self, node: Node) -> KeyValue | None:
        """Return ``node`` as an entry; None for a key that is no direct child of ``subnets``."""
        name = self.name(node.key)
        return None if name is None else node.entry(name)

    def after(self, key: str) -> dict[str, Any]:
        """Return the rest of ``span`` behind ``key``."""
        return self.span | {"key": encoded(f"{key}\0")}


class Known:
    """What the answers of etcd have shown: the cluster that the cursor belongs to, and the version of the config.

    The version is the revision of the config's last write; 0 stands for no config.  All methods belong to the event
    loop.
    """

    def __init__(self) -> None:
        self.cluster: int | None = None
        self.config: int | None = None
        self._at = 0
        self._read: int | None = None
        self._differs = asyncio.Event()
        self._is_reported = False

    def note_read(self, version: int) -> None:
        """Note the version that ``read_config`` has returned."""
        self._read = version
        self._is_reported = False
        self._differs.clear()

    def note(self, header: Header, config: int) -> None:
        """Note the version of the config at a revision; an answer that is older than the last one is ignored."""
        if self.cluster is None:
            self.cluster = header.cluster
        if header.cluster == self.cluster:
            self.note_config(header.revision, config)

    def note_config(self, revision: int, config: int) -> None:
        """Note the version of the config at a revision of the known cluster."""
        if revision >= self._at:
            self._at, self.config = revision, config
            self._compare(config)

    def forget(self, config: int | None) -> None:
        """Forget what belongs to a lost history; ``config``: its present version, if known."""
        self.cluster = self.config = None
        self._at = 0
        if config is not None:
            self._compare(config)

    async def wait_for_config_change(self, seconds: float) -> None:
        """Wait until the config differs from the one that was read; if reading it has failed, wait ``seconds``."""
        if self._is_reported:
            await asyncio.sleep(seconds)
        else:
            await self._differs.wait()
            self._is_reported = True

    def _compare(self, config: int) -> None:
        if config != self._read:
            self._differs.set()


def _joined(prefix: str, name: str) -> str:
    """Return the key ``name`` below ``prefix``.  Source: path.Join of Go, which keeps a leading slash and adds none."""
    key = posixpath.normpath(f"{prefix}/{name}")
    return f"/{key.lstrip('/')}" if key.startswith("/") else key
