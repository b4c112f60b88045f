"""Pings the peers: small packets for loss and round trip, and long ones with DF for the path MTU."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from statistics import median
from typing import NamedTuple

from flannelpy.check.lines import Echo
from flannelpy.check.observations import HostSeen, Peer, PeerSeen, PortSeen, WaySeen
from flannelpy.check.plan import Plan, bridge_address, tunnel_address
from flannelpy.linux import udp_probe
from flannelpy.linux.icmp_echo import NOT_PERMITTED, TIME_EXCEEDED, Answer, IcmpEcho
from flannelpy.linux.udp_probe import PortState

# Bytes of a small IP packet, as of ping(8).
_SMALL = 84
_SMALL_COUNT, _LONG_COUNT, _MORE = 3, 2, 10
_INTERVAL, _PATIENCE = 0.1, 2.0
# To an address that has not answered, so that a path that loses half of the pings does not look like a closed one.
_AGAIN_COUNT, _AGAIN_PATIENCE = 4, 0.7
# The search for the path MTU sends this many lengths at a time, so three turns find it between 84 and 9000.  Each is
# sent twice.
_LENGTHS, _SEARCH_PATIENCE, _COPIES = 24, 0.5, 2
# A length is too long if that many packets of it are lost, each with a small one right behind it that arrives.
_PAIRS, _PROOF = 8, 4
_SEARCHES = 3
_AT_A_TIME = 100
# flannelpy decrements the TTL once, so that the kernel of the peer finds the last hop.
_LAST_HOP = {"udp": 2, "vxlan": 1, "host-gw": 1}
_TRIES, _HOP_PATIENCE = 2, 0.5
_PORTS = {
    PortState.CLOSED: PortSeen.CLOSED,
    PortState.PROHIBITED: PortSeen.PROHIBITED,
    PortState.SILENT: PortSeen.SILENT,
    PortState.NOT_PERMITTED: PortSeen.NOT_PERMITTED,
}


class Pings:
    """Pings from the addresses of this host, inside ``async with``, which raises HostError."""

    def __init__(self, host: HostSeen, plan: Plan | None) -> None:
        """``plan``: None if this host has no subnet; then only public IPs are pinged."""
        self._host = host
        self._plan = plan
        self._sockets: dict[IPv4Address, IcmpEcho] = {}
        self._stack = AsyncExitStack()
        self._slots = asyncio.Semaphore(_AT_A_TIME)

    async def __aenter__(self) -> Pings:
        await self._socket(self._host.external.address)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _socket(self, source: IPv4Address) -> IcmpEcho:
        if source not in self._sockets:
            self._sockets[source] = await self._stack.enter_async_context(IcmpEcho(source))
        return self._sockets[source]

    async def look(self, peers: Sequence[Peer], ways: Mapping[IPv4Network, WaySeen]) -> list[PeerSeen]:
        """Return what each peer answers; many are asked at the same time."""
        return await asyncio.gather(*(self._peer(peer, ways[peer.subnet]) for peer in peers))

    async def _peer(self, peer: Peer, way: WaySeen) -> PeerSeen:
        seen = PeerSeen(peer.subnet, peer.public_ip, way)
        if way.no_route:
            return seen
        async with self._slots:
            public, tunnel, bridge = await asyncio.gather(self._public(peer), self._tunnel(peer), self._bridge(peer))
            seen = replace(seen, public=public, tunnel=tunnel, bridge=bridge)
            if any(echo.has_arrived for echo in (tunnel, bridge) if echo):
                return await self._again(seen)
            again, is_forwarding, port = await asyncio.gather(
                self._again(seen), self._is_forwarding(seen), self._port(seen)
            )
            return replace(again, is_forwarding=is_forwarding, port=port)

    async def _again(self, seen: PeerSeen) -> PeerSeen:
        """Ask the addresses again that have given no answer at all."""
        public, tunnel, bridge = await asyncio.gather(*map(self._repeated, (seen.public, seen.tunnel, seen.bridge)))
        return replace(seen, public=public, tunnel=tunnel, bridge=bridge)

    async def _repeated(self, echo: Echo | None) -> Echo | None:
        if echo is None or echo.received or echo.error:
            return echo
        ping = await self._socket(echo.source)
        answers = await _several(ping, echo.target, _SMALL, _AGAIN_COUNT, _AGAIN_PATIENCE)
        return _echo(echo.source, echo.target, [*[Answer()] * echo.sent, *answers], echo.full, path_mtu=0)

    async def _public(self, peer: Peer) -> Echo:
        full = self._plan.mtu + self._plan.overhead if self._plan else self._host.external.mtu
        return await self._measure(self._host.external.address, peer.public_ip, full)

    async def _tunnel(self, peer: Peer) -> Echo | None:
        if not self._plan or not self._plan.has_tunnel:
            return None
        source = tunnel_address(self._plan.subnet)
        if not self._host.holder_of(source):
            return None
        return await self._measure(source, tunnel_address(peer.subnet), self._plan.mtu)

    async def _bridge(self, peer: Peer) -> Echo | None:
        if not self._plan or not self._plan.routes_packets:
            return None
        tunnel = tunnel_address(self._plan.subnet)
        is_by_tunnel = self._plan.has_tunnel and not self._plan.is_direct
        if is_by_tunnel and not self._host.holder_of(tunnel):  # the line about the device has the cause
            return None
        source = next(filter(self._host.holder_of, (bridge_address(self._plan.subnet), tunnel)), None)
        if source is None and self._plan.has_tunnel:
            return None
        source = source or self._host.external.address
        return await self._measure(source, bridge_address(peer.subnet), self._plan.mtu)

    async def _is_forwarding(self, seen: PeerSeen) -> bool:
        """Return whether the peer reports that a packet for one of its containers has no hop left.

        A firewall that drops pings for the peer itself does not see a packet that is forwarded.  Without a tunnel, only
        a bridge is silent beside the public IP, and there may be none.
        """
        if not self._plan or not seen.bridge or (seen.public and seen.public.has_arrived and not seen.tunnel):
            return False
        ping, target = await self._socket(seen.bridge.source), seen.subnet.broadcast_address - 1
        reporters = (tunnel_address(seen.subnet), bridge_address(seen.subnet), seen.public_ip)
        for _ in range(_TRIES):
            answer = await ping.ask(target, _SMALL, _HOP_PATIENCE, _LAST_HOP[self._plan.backend])
            if answer.error == TIME_EXCEEDED and answer.reporter in reporters:
                return True
        return False

    async def _port(self, seen: PeerSeen) -> PortSeen | None:
        """Return what the backend's port answers, if only the public IP does; None if it was not asked."""
        is_cut_off = seen.public and seen.public.has_arrived and seen.tunnel
        if not is_cut_off or not self._plan or not self._plan.port:
            return None
        state = await udp_probe.probe(self._host.external.address, seen.public_ip, self._plan.port)
        return _PORTS.get(state)

    async def _measure(self, source: IPv4Address, target: IPv4Address, full: int) -> Echo:
        """Ping one address."""
        ping = await self._socket(source)
        both = await asyncio.gather(
            _several(ping, target, _SMALL, _SMALL_COUNT), _several(ping, target, full, _LONG_COUNT)
        )
        small, long = both
        if 0 < _received(small) < len(small):  # one lost packet is no loss rate
            small += await _several(ping, target, _SMALL, _MORE - _SMALL_COUNT)
        if not _received(small) or _received(long):
            return _echo(source, target, small, full, path_mtu=full if _received(small) else 0)
        return await self._narrowed(ping, target, full, small + long)

    async def _narrowed(self, ping: IcmpEcho, target: IPv4Address, full: int, before: list[Answer]) -> Echo:
        """Find out why no packet of the full length is answered; ``before``: the answers so far, the long ones last.

        Only pings that are short enough count as lost.
        """
        pairs = await _pairs(ping, target, full)
        if pairs.is_too_long:
            path_mtu, small = await _path_mtu(ping, target, full - 1)
            return _echo(ping.source, target, [*before[:-_LONG_COUNT], *pairs.small, *small], full, path_mtu=path_mtu)
        path_mtu = full if _received(pairs.long) else 0
        return _echo(ping.source, target, [*before, *pairs.small, *pairs.long], full, path_mtu=path_mtu)


async def _several(
    ping: IcmpEcho, target: IPv4Address, length: int, count: int, patience: float = _PATIENCE
) -> list[Answer]:
    async def one(number: int) -> Answer:
        await asyncio.sleep(number * _INTERVAL)
        return await ping.ask(target, length, patience)

    return list(await asyncio.gather(*map(one, range(count))))


def _received(answers: Sequence[Answer]) -> int:
    return sum(answer.seconds is not None for answer in answers)


def _echo(source: IPv4Address, target: IPv4Address, answers: Sequence[Answer], full: int, *, path_mtu: int) -> Echo:
    times = [answer.seconds * 1000 for answer in answers if answer.seconds is not None]
    errors = [f"{one.error}{f' from {one.reporter}' if one.reporter else ''}" for one in answers if one.error]
    return Echo(
        source,
        target,
        len(answers),
        len(times),
        median(times) if times else None,
        full,
        path_mtu,
        error="" if times else next(iter(errors), ""),
        is_rejected=any(one.reporter == target for one in answers),
        is_stopped=any(one.error == NOT_PERMITTED for one in answers),
    )


class _Pairs(NamedTuple):
    """The answers to packets of one length, and to the small ones right behind them."""

    long: list[Answer]
    small: list[Answer]

    @property
    def is_too_long(self) -> bool:
        """Whether the length is the cause of the loss, and neither a rate limit nor a lossy path is."""
        proof = sum(small.seconds is not None for small in self.small)
        return not _received(self.long) and proof >= _PROOF


async def _pairs(ping: IcmpEcho, target: IPv4Address, length: int) -> _Pairs:
    """Send pairs of a long and a small packet.  A rate limit that passes one packet of a pair passes the long one."""

    async def pair(number: int) -> list[Answer]:
        await asyncio.sleep(number * _INTERVAL)
        return await asyncio.gather(*(ping.ask(target, size, _SEARCH_PATIENCE) for size in (length, _SMALL)))

    long, small = zip(*await asyncio.gather(*map(pair, range(_PAIRS))), strict=True)
    return _Pairs(list(long), list(small))


async def _path_mtu(ping: IcmpEcho, target: IPv4Address, high: int) -> tuple[int, list[Answer]]:
    """Return the length of the longest packet that passes, at most ``high``; 0 if loss hides it.

    And the answers to the small packets, which pass.
    """
    low, small = _SMALL, list[Answer]()
    for _ in range(_SEARCHES):
        low = await _longest(ping, target, low, high)
        if low == high:
            return low, small
        pairs = await _pairs(ping, target, low + 1)
        small += pairs.small
        if pairs.is_too_long:
            return low, small
        if not _received(pairs.long):
            break
        low += 1
    return 0, small


async def _longest(ping: IcmpEcho, target: IPv4Address, low: int, high: int) -> int:
    """Return the length of the longest packet that arrives, if none is lost by chance; those of ``low`` bytes do."""
    while low < high:
        count = min(_LENGTHS, high - low)
        lengths = [low + (high - low) * number // count for number in range(count, 0, -1)]
        asked = [length for length in lengths for _ in range(_COPIES)]
        answers = await asyncio.gather(*(ping.ask(target, length, _SEARCH_PATIENCE) for length in asked))
        passed = [length for length, answer in zip(asked, answers, strict=True) if answer.seconds is not None]
        longest = max(passed, default=low)
        high = min((length - 1 for length in lengths if length > longest), default=longest)
        low = longest
    return low
