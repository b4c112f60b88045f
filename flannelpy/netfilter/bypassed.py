"""What the fast path would bypass: rules that may match the datagrams of this host and its peers.  Pure."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import NamedTuple


class OuterDatagrams(NamedTuple):
    """The datagrams that the fast path sends and takes: between ``port`` here and ``port`` of each peer.

    ``address``: the bound address.  ``interface``: the external interface, by which they come and go.
    """

    address: IPv4Address
    port: int
    interface: str
