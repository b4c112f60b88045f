"""Judges the ways to one peer: the kernel's answers, and the peer's own.  Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flannelpy.check.codes import Code
from flannelpy.check.lines import Echo, Line, Link, ok
from flannelpy.check.observations import PeerSeen, PortSeen
from flannelpy.check.plan import Plan
from flannelpy.check.verdicts import found

_CERTAIN = (PortSeen.CLOSED, PortSeen.PROHIBITED, PortSeen.NOT_PERMITTED)
_PORTS = {
    PortSeen.CLOSED: (Code.PORT_CLOSED, "is closed"),
    PortSeen.PROHIBITED: (Code.PORT_PROHIBITED, "is prohibited"),
    PortSeen.SILENT: (Code.DATAGRAMS_LOST, "rejects nothing"),
    PortSeen.NOT_PERMITTED: (Code.DATAGRAMS_REFUSED, "may not be sent to"),
    None: (Code.DATAGRAMS_LOST, "cannot be asked"),
}


def ways(peers: Sequence[PeerSeen]) -> Iterator[Line]:
    """Yield the lines about routes and rp_filter."""
    for peer in peers:
        if peer.way.diverted:
            text = f"packets to {peer.subnet} of {peer.public_ip}: {'; '.join(peer.way.diverted)}"
            yield found(Code.ROUTE_DIVERTED, text, peer=peer.subnet)
        elif peer.way.missing:
            text = f"packets to {peer.subnet} of {peer.public_ip}: the kernel has no {', no '.join(peer.way.missing)}"
            yield found(Code.ENTRY_MISSING, text, peer=peer.subnet)
        for device in peer.way.rejecting:
            text = f"packets from {peer.public_ip} that arrive by {device} are dropped"
            yield found(Code.RP_FILTER, text, peer=peer.subnet, device=device.replace(".", "/"))
    count = f"{len(peers)} peer{'s' if len(peers) > 1 else ''}"
    if peers and not any(peer.way.diverted or peer.way.missing for peer in peers):
        yield ok(Link.ROUTES, f"the kernel uses flannelpy's routes to {count}")
    if peers and not any(peer.way.rejecting for peer in peers):
        yield ok(Link.RP_FILTER, f"rp_filter accepts the packets of {count}")


def answers(peer: PeerSeen, plan: Plan | None, *, is_hanging: bool = False) -> Iterator[Line]:
    """Yield the lines about what a peer answered; without a ``plan``, only its public IP was asked.

    ``is_hanging``: whether the daemon of this host carries the packets, and gives no answer.

    If ``ways`` has named why no answer comes, no line guesses at another cause.
    """
    overlay = [echo for echo in (peer.tunnel, peer.bridge) if echo]
    if peer.way.no_route:
        text = f"{peer.public_ip} of {peer.subnet}: {peer.way.no_route}"
        yield found(Code.NO_ROUTE_TO_PEER, text, peer=peer.subnet, address=peer.public_ip)
    elif plan and any(echo.has_arrived for echo in overlay):
        yield from _reached(peer, plan)
    elif peer.public:
        yield from _unreached(peer, peer.public, plan, is_hanging=is_hanging)


def _reached(peer: PeerSeen, plan: Plan) -> Iterator[Line]:
    """Yield a line for each address of a peer that the overlay reaches; an address may filter pings."""
    if peer.public:
        yield _line("public IP", peer, peer.public)
    narrow = [echo for echo in (peer.tunnel, peer.bridge) if echo and echo.is_narrow]
    for name, echo in (("tunnel", peer.tunnel), ("bridge", peer.bridge)):
        if echo is None:
            continue
        if narrow and echo is narrow[0]:
            yield _narrow(name, peer, echo, plan)
        elif name == "bridge" and not echo.has_arrived:
            yield _silent_bridge(peer, echo)
        else:
            yield _line(name, peer, echo)


def _unreached(peer: PeerSeen, public: Echo, plan: Plan | None, *, is_hanging: bool) -> Iterator[Line]:
    """Yield the lines about a peer of which no address in the overlay answers."""
    silent = [echo for echo in (public, peer.tunnel, peer.bridge) if echo and not echo.has_arrived]
    text = f"{peer.subnet}: no answer of {', nor of '.join(map(str, silent))}"
    if public.is_lossy and silent and peer.port not in _CERTAIN:
        yield found(Code.LOSS, f"public IP of {peer.subnet}: {public}; {text}", peer=peer.subnet, echo=public)
        return
    if public.has_arrived:
        yield _line("public IP", peer, public)
    if is_hanging and public.has_arrived and silent:
        yield found(Code.DAEMON_HANGS, text, peer=peer.subnet)
    elif peer.is_forwarding:
        yield found(Code.PINGS_DROPPED, text, peer=peer.subnet)
    elif any(echo.is_stopped for echo in silent):
        yield found(Code.PING_REFUSED, text, peer=peer.subnet)
    elif peer.way.rejecting:
        return
    elif not public.has_arrived:
        yield found(Code.PEER_SILENT, text, peer=peer.subnet, echo=public)
    elif plan and not (peer.way.diverted or peer.way.missing):
        yield from _cut_off(peer, plan)


def _cut_off(peer: PeerSeen, plan: Plan) -> Iterator[Line]:
    """Yield the line about a peer whose host answers, and whose overlay does not."""
    if peer.tunnel is None:
        yield from [_silent_bridge(peer, peer.bridge)] if peer.bridge else []
        return
    code, state = _PORTS[peer.port]
    port = plan.port or "of the backend"  # without etcd
    text = f"tunnel of {peer.subnet}: {peer.tunnel}, and UDP port {port} of {peer.public_ip} {state}"
    yield found(code, text, peer=peer.subnet, echo=peer.tunnel, port=port)


def _silent_bridge(peer: PeerSeen, echo: Echo) -> Line:
    return found(Code.BRIDGE_SILENT, f"bridge of {peer.public_ip}: {echo}", peer=peer.subnet, echo=echo)


def _narrow(name: str, peer: PeerSeen, echo: Echo, plan: Plan) -> Line:
    wire = echo.path_mtu + plan.overhead
    if plan.has_tunnel:
        change = f'set "MTU": {wire} in the Backend of the network config, then restart all hosts and Docker'
    else:
        change = f"ip link set mtu {wire} on the interfaces of all hosts, then restart flannelpy and Docker"
    text = f"{name} of {peer.public_ip}: {echo}, but containers send up to {echo.full} bytes"
    if peer.public and peer.public.path_mtu >= echo.full + plan.overhead:
        return found(
            Code.LONG_PACKETS_LOST, f"{text}, and its public IP answers long ones", peer=peer.subnet, echo=echo
        )
    return found(Code.MTU_TOO_LARGE, text, peer=peer.subnet, echo=echo, change=change)


def _line(name: str, peer: PeerSeen, echo: Echo) -> Line:
    """Return the line about an address of a peer of which at least one address answers."""
    text = f"{name} of {peer.subnet}: {echo}"
    others = [one for one in (peer.public, peer.tunnel, peer.bridge) if one]
    if not echo.received and not any(0 < one.received < one.sent for one in others):
        why = f"rejects pings ({echo.error})" if echo.is_rejected else "answers no ping, and others of that host do"
        return ok(Link.PEERS, f"{name} of {peer.subnet}: {echo.target} from {echo.source}: {why}", peer.subnet, echo)
    if echo.received < echo.sent:
        return found(Code.LOSS, text, peer=peer.subnet, echo=echo)
    return ok(Link.PEERS, text, peer=peer.subnet, echo=echo)
