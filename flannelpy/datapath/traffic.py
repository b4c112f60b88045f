"""What a backend has the host send and forward, as the firewall needs to know it.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Datagrams(NamedTuple):
    """The UDP datagrams of a backend: all hosts listen on ``port``; ``device`` is where packets enter the overlay.

    ``source_port``: 0 if the kernel chooses one for each flow.  ``accepts_local``: the device needs accept_local.
    """

    device: str
    port: int
    source_port: int
    accepts_local: bool


class Forwarding(NamedTuple):
    """By which devices packets come from containers of other hosts, and go there.

    ``external``: the external interface, by which no packet of a container here arrives.
    ``masquerading``: the device by which they come with the public IP of a host that masquerades them, if there is one.
    """

    devices: Sequence[str]
    external: str
    masquerading: str = ""
