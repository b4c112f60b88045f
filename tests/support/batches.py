"""Gives an engine its batches as the proxy does, and reads its plans."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.oracle import VnetHeader
from support.packets import PORT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flannelpy.datapath.engine import Engine, Plan
    from flannelpy.datapath.routes import NextHop

_RUBBISH = b"\xa5" * 100  # of an earlier batch
_PLAIN = VnetHeader()
#: Whose datagrams they are, unless another is named.
SENDER = ("172.17.8.102", PORT)


def outbound(
    engine: Engine,
    packets: list[bytes],
    now: float = 0.0,
    headers: list[VnetHeader] | None = None,
    behind: bytes = _RUBBISH,
) -> Plan:
    """What becomes of packets from the TUN; without ``headers`` they are whole and finished."""
    data = b"".join(packets)
    vnet_hdrs = b"".join(header.encode() for header in headers or [_PLAIN] * len(packets))
    engine.vnet_hdrs[:] = vnet_hdrs.ljust(len(engine.vnet_hdrs), b"\xa5")
    put(data, behind, engine.tun_buffer)
    plan = engine.outbound(list(map(len, packets)), now)
    assert engine.tun_buffer.startswith(behind, len(data))
    return plan


def inbound(engine: Engine, packets: list[bytes], now: float = 0.0, sender: tuple[str, int] = SENDER) -> Plan:
    """What becomes of datagrams that came one by one."""
    return inbound_trains(engine, [(packet, len(packet)) for packet in packets], now, sender)


def inbound_trains(
    engine: Engine,
    trains: list[tuple[bytes, int]],
    now: float = 0.0,
    sender: tuple[str, int] = SENDER,
    behind: bytes = _RUBBISH,
) -> Plan:
    """What becomes of (datagrams in one piece, segment size), all of one sender."""
    return inbound_of_many(engine, [(*train, sender) for train in trains], now, behind)


def inbound_of_many(
    engine: Engine, trains: Sequence[tuple[bytes, int, tuple[str, int]]], now: float = 0.0, behind: bytes = _RUBBISH
) -> Plan:
    """What becomes of (datagrams in one piece, segment size, sender)."""
    data = b"".join(train for train, *_ in trains)
    put(data, behind, engine.udp_buffer)
    plan = engine.inbound([(len(train), segment_size, sender) for train, segment_size, sender in trains], now)
    assert engine.udp_buffer.startswith(behind, len(data))
    return plan


def put(data: bytes, behind: bytes, buffer: bytearray) -> None:
    """Put both at the start of the buffer, which is large enough."""
    assert len(data) + len(behind) <= len(buffer)
    buffer[: len(data) + len(behind)] = data + behind


def datagrams(plan: Plan) -> list[tuple[NextHop, bytes]]:
    """Those of all runs in order, after a look at the runs' shapes."""
    found = []
    for run in plan.runs:
        data = bytes(run.data)
        assert 0 < len(data) <= 65535
        pieces = [data[start : start + run.segment_size] for start in range(0, len(data), run.segment_size)]
        assert len(pieces) == 1 or (len(pieces) <= 64 and len(data) <= 65000)
        found += [(run.next_hop, piece) for piece in pieces]
    return found


def for_the_tun(plan: Plan) -> list[tuple[bytes, bytes]]:
    """(vnet header, packet) pairs by their bytes."""
    return [(header, bytes(packet)) for header, packet in plan.packets]
