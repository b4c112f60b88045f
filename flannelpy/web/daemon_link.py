"""The connections of the HTTP process to the daemon, which are kept open.

They speak the protocol of the control socket (``serving/wire.py``).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence

from flannelpy.errors import DaemonUnavailable, MessageError
from flannelpy.serving import wire

# The longest line has the reports of all networks, or a hundred peers.
_LONGEST_LINE = 16 << 20


class DaemonLinks:
    """Two connections: the report for a probe does not wait for ten thousand peers that are on the way."""

    def __init__(self, of_reports: DaemonLink, of_peers: DaemonLink) -> None:
        self._of_reports = of_reports
        self._of_peers = of_peers

    @staticmethod
    async def over(connections: Sequence[socket.socket]) -> DaemonLinks:
        """Return the links over two connected sockets."""
        return DaemonLinks(*[await DaemonLink.over(each) for each in connections])

    def close(self) -> None:
        """Close the connections."""
        self._of_reports.close()
        self._of_peers.close()

    async def ask(self, *, with_peers: bool) -> wire.Answer:
        """Return the report, as pages.Daemon demands; as for DaemonLink, the task must not be cancelled."""
        return await (self._of_peers if with_peers else self._of_reports).ask(with_peers=with_peers)


class DaemonLink:
    """One connection: asks one question after the other.  When the daemon has closed it, the process ends."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._turn = asyncio.Lock()

    @staticmethod
    async def over(connection: socket.socket) -> DaemonLink:
        """Return the link over a connected socket."""
        return DaemonLink(*await asyncio.open_unix_connection(sock=connection, limit=_LONGEST_LINE))

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()

    async def ask(self, *, with_peers: bool) -> wire.Answer:
        """Return the report, as pages.Daemon demands.

        The task must not be cancelled: the answer comes nevertheless, and would be taken for that of the next question.
        """
        async with self._turn:
            self._writer.write(wire.request_line(wire.GetReport(with_peers)))
            try:
                return wire.answer([part async for part in self._parts()])
            except MessageError as error:
                raise DaemonUnavailable(str(error)) from error

    async def _parts(self) -> AsyncIterator[wire.Part]:
        """Yield the parts of an answer up to its end.  Raises MessageError after the end; SystemExit without an end."""
        failure: MessageError | None = None
        while line := await self._reader.readline():
            try:
                part = wire.parse_part(line)
            except MessageError as error:
                failure = error
                continue
            if isinstance(part, wire.End | wire.Refusal):
                break
            yield part
        else:
            raise SystemExit(0)
        if failure:
            raise failure
