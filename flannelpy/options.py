"""The options of one run, from flags and variables."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ipaddress import IPv4Address
    from pathlib import Path

    from flannelpy.datapath.source_check import SourceCheck

# A subnet file is not named by dots alone.
_LOCK_NAME = re.compile(r"\.(.*[^.].*)\.lock", re.DOTALL)


class EtcdApi(enum.StrEnum):
    """The version of etcd's API by which config and leases are kept; ``AUTO``: that of the config."""

    AUTO = "auto"
    V2 = "2"
    V3 = "3"


class Datapath(enum.StrEnum):
    """What carries the packets of the udp backend.

    ``LOOP``: this process.  ``AUTO``: eBPF programs in the kernel where that is possible, otherwise the loop.
    ``KERNEL``: the same, but a host that cannot have the programs does not start.
    """

    LOOP = "loop"
    AUTO = "auto"
    KERNEL = "kernel"


@dataclass(frozen=True, slots=True)
class Options:
    """The checked values of all flags; None stands for a flag that was not given and has no default."""

    iface: tuple[str, ...]  # names and addresses; the first that exists is used
    iface_regex: tuple[re.Pattern[str], ...]
    iface_can_reach: IPv4Address | None
    public_ip: IPv4Address | None
    host_id: str | None
    networks: tuple[str, ...]  # empty: one network, whose config is directly below the prefix
    etcd_endpoints: tuple[str, ...]
    etcd_prefix: str
    etcd_api: EtcdApi
    etcd_keyfile: str | None
    etcd_certfile: str | None
    etcd_cafile: str | None
    etcd_username: str | None
    etcd_password: str | None = field(repr=False)
    subnet_lease_ttl: int  # seconds
    subnet_lease_renew_margin: int  # seconds
    subnet_file: Path
    subnet_dir: Path
    ip_masq: bool
    iptables_forward_rules: bool
    iptables_resync: int  # seconds
    source_check: SourceCheck
    offload: frozenset[str] | None
    datapath: Datapath
    healthz_ip: IPv4Address
    healthz_port: int  # 0: no HTTP
    metrics_ip: tuple[IPv4Address, ...]
    metrics_peers: bool
    cleanup: bool
    release: bool
    verbosity: int

    def subnet_file_of(self, network: str) -> Path:
        """Return the path of a network's subnet file; the only network of a host has the name ""."""
        return self.subnet_dir / f"{network}.env" if network else self.subnet_file

    @property
    def control_socket(self) -> Path:
        """Return the path of the daemon's control socket."""
        return control_socket(self.subnet_file, self.subnet_dir if self.networks else None)

    def ready_file_of(self, network: str) -> Path:
        """Return the path of the file that exists while a network is ready."""
        file = self.subnet_file_of(network)
        return file.with_name("ready" if not network and file.name == "subnet.env" else f"{file.name}.ready")


def control_socket(subnet_file: Path, subnet_dir: Path | None) -> Path:
    """Return the path of a daemon's control socket; ``subnet_dir`` is None for a daemon without -networks."""
    if subnet_dir:
        return subnet_dir / "control.sock"
    return subnet_file.with_name("control.sock" if subnet_file.name == "subnet.env" else f"{subnet_file.name}.sock")


def lock_path(subnet_file: Path) -> Path:
    """Return the lock file of a subnet file: each subnet file has a lock file of its own."""
    return subnet_file.with_name(f".{subnet_file.name}.lock")


def locked_by(lock_file: Path) -> Path | None:
    """Return the subnet file whose lock file this is; None if no lock file has such a name."""
    match = _LOCK_NAME.fullmatch(lock_file.name)
    return lock_file.with_name(match[1]) if match else None
