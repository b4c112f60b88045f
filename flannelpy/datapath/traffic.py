"""The packets that the host sends and forwards for a backend, as the firewall needs to know.  Pure."""

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
    """The devices by which packets come from containers of peers, and go there.

    ``unused``: of ``devices`` those by which flannelpy reaches no peer now, unless it reaches none at all.
    ``external``: the external interface, by which no packet of a container of this host arrives.
    ``masquerading``: the device by which packets arrive with the public IP of a peer that masquerades them, or "".
    """

    devices: Sequence[str]
    external: str
    masquerading: str = ""
    unused: Sequence[str] = ()
