"""Judges the ways to one peer: the kernel's answers, and the peer's own.  Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flannelpy.check.lines import Echo, Line, Link, ok
from flannelpy.check.observations import PeerSeen
from flannelpy.check.plan import Plan
from flannelpy.check.verdicts import Code, found


def ways(peers: Sequence[PeerSeen]) -> Iterator[Line]:
    """Yield the lines about routes and rp_filter."""
    for peer in peers:
        if peer.way.diverted:
            text = f"packets to {peer.subnet} of {peer.public_ip}: {'; '.join(peer.way.diverted)}"
            yield found(Code.ROUTE_DIVERTED, text, peer=peer.subnet)
        for device in peer.way.rejecting:
            text = f"packets from {peer.public_ip} that arrive by {device} are dropped"
            yield found(Code.RP_FILTER, text, peer=peer.subnet, device=device.replace(".", "/"))
    count = f"{len(peers)} peer{'s' if len(peers) > 1 else ''}"
    if peers and not any(peer.way.diverted for peer in peers):
        yield ok(Link.ROUTES, f"the kernel uses flannelpy's routes to {count}")
    if peers and not any(peer.way.rejecting for peer in peers):
        yield ok(Link.RP_FILTER, f"rp_filter accepts the packets of {count}")


def answers(peer: PeerSeen, plan: Plan | None) -> Iterator[Line]:
    """Yield the lines about what a peer answered; without a ``plan``, only its public IP was asked.

    If ``ways`` has named why no answer comes, no line guesses at another cause.
    """
    overlay = [echo for echo in (peer.tunnel, peer.bridge) if echo]
    if peer.way.no_route:
        text = f"{peer.public_ip} of {peer.subnet}: {peer.way.no_route}"
        yield found(Code.NO_ROUTE_TO_PEER, text, peer=peer.subnet, address=peer.public_ip)
    elif plan and any(map(_answers, overlay)):
        yield from _reached(peer, plan)
    elif peer.public and _answers(peer.public):
        yield _line("public IP", peer, peer.public)
        yield from _cut_off(peer, plan) if plan and not (peer.way.diverted or peer.way.rejecting) else []
    elif peer.public and not peer.way.rejecting:
        silent = ", nor does ".join(str(echo) for echo in (peer.public, *overlay))
        yield found(Code.PEER_SILENT, f"{peer.subnet}: no answer of {silent}", peer=peer.subnet, echo=peer.public)


def _reached(peer: PeerSeen, plan: Plan) -> Iterator[Line]:
    """Yield a line for each address of a peer that the overlay reaches; an address may filter pings."""
    if peer.public:
        yield _line("public IP", peer, peer.public)
    narrow = [echo for echo in (peer.tunnel, peer.bridge) if echo and _answers(echo) and echo.path_mtu < echo.full]
    for name, echo in (("tunnel", peer.tunnel), ("bridge", peer.bridge)):
        if echo is None:
            continue
        if narrow and echo is narrow[0]:
            yield _narrow(name, peer, echo, plan)
        elif name == "bridge" and not _answers(echo):
            yield _silent_bridge(peer, echo)
        else:
            yield _line(name, peer, echo)


def _cut_off(peer: PeerSeen, plan: Plan) -> Iterator[Line]:
    """Yield the line about a peer whose host answers, and whose overlay does not."""
    if peer.tunnel is None:
        yield from [_silent_bridge(peer, peer.bridge)] if peer.bridge else []
        return
    code = Code.PORT_CLOSED if peer.is_port_closed else Code.DATAGRAMS_LOST
    port = f"UDP port {plan.port} of {peer.public_ip} {'is closed' if peer.is_port_closed else 'rejects nothing'}"
    text = f"tunnel of {peer.subnet}: {peer.tunnel}, and {port}"
    yield found(code, text, peer=peer.subnet, echo=peer.tunnel, port=plan.port)


def _silent_bridge(peer: PeerSeen, echo: Echo) -> Line:
    return found(Code.BRIDGE_SILENT, f"bridge of {peer.public_ip}: {echo}", peer=peer.subnet, echo=echo)


def _narrow(name: str, peer: PeerSeen, echo: Echo, plan: Plan) -> Line:
    wire = echo.path_mtu + plan.overhead
    if plan.has_tunnel:
        change = f'set "MTU": {wire} in the Backend of the network config, then restart all hosts and Docker'
    else:
        change = f"ip link set mtu {wire} on the interfaces of all hosts, then restart flannelpy and Docker"
    text = f"{name} of {peer.public_ip}: {echo}, but containers send up to {echo.full} bytes"
    return found(Code.MTU_TOO_LARGE, text, peer=peer.subnet, echo=echo, change=change)


def _line(name: str, peer: PeerSeen, echo: Echo) -> Line:
    text = f"{name} of {peer.subnet}: {echo}"
    if 0 < echo.received < echo.sent:
        return found(Code.LOSS, text, peer=peer.subnet, echo=echo)
    return ok(Link.PEERS, text, peer=peer.subnet, echo=echo)


def _answers(echo: Echo) -> bool:
    return echo.received > 0
