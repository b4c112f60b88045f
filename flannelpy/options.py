"""What the command line settles for one run of the daemon."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ipaddress import IPv4Address
    from pathlib import Path


class SourceCheck(enum.StrEnum):
    """Whose datagrams are accepted: a lease's public IP, only for its own subnet, or anybody's."""

    PEER = "peer"
    STRICT = "strict"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Options:
    """The checked values of all flags.  None: not given, the daemon decides or does without."""

    iface: tuple[str, ...]  # names and addresses, the first that fits counts
    iface_regex: tuple[re.Pattern[str], ...]
    iface_can_reach: IPv4Address | None
    public_ip: IPv4Address | None
    host_id: str | None
    networks: tuple[str, ...]  # empty: the one whose config is right below the prefix
    etcd_endpoints: tuple[str, ...]
    etcd_prefix: str
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
    cleanup: bool
    release: bool
    verbosity: int


def is_host_id(text: str) -> bool:
    """Whether ``text`` may be a host ID: a name that stays readable in the store."""
    return re.fullmatch("[A-Za-z0-9._:-]{0,64}", text) is not None
