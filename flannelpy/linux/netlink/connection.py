"""The sockets of one connection to the kernel, and what their errors mean.

What a check reads goes through our own messages, because pyroute2 takes milliseconds; pyroute2 makes all other
requests.  It takes tens of milliseconds to import, so it is imported for the first such request: with host-gw,
or while the config in etcd is missing or wrong, there is none.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from flannelpy.errors import HostError
from flannelpy.linux.netlink.socket import RtnetlinkSocket

if TYPE_CHECKING:
    from flannelpy.linux.netlink.iproute import AsyncIPRoute

#: The errno of a removal if the object has been removed already, or went with its interface.
GONE = (errno.ENOENT, errno.ESRCH, errno.ENODEV)


class Taken(HostError):
    """Another device or program has what an interface needs: ``errno`` is EEXIST or EADDRINUSE."""

    def __init__(self, text: str, errno: int) -> None:
        super().__init__(text)
        self.errno = errno


class Connection:
    """The kernel of this network namespace, inside ``async with``, which raises HostError.  Source: rtnetlink(7)."""

    async def __aenter__(self) -> Self:
        try:
            self._socket = RtnetlinkSocket()
        except OSError as error:
            raise _cannot_open(error) from error
        self._opened = AsyncExitStack()
        self._opened.callback(self._socket.close)
        self._route: AsyncIPRoute | None = None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._opened.__aexit__(kind, error, trace)

    @asynccontextmanager
    async def _iproute(
        self, what: str, *, harmless: Collection[int] = (), taken: Collection[int] = (), hint: str = ""
    ) -> AsyncIterator[AsyncIPRoute]:
        """Yield pyroute2, and turn its errors into a HostError, ``<what>: <error><hint>``.

        An errno in ``harmless`` is no error, and one in ``taken`` becomes a ``Taken`` with the text ``what``.
        """
        from flannelpy.linux.netlink.iproute import NetlinkError

        route = await self._open_route()
        try:
            yield route
        except NetlinkError as error:
            if error.code in taken:
                raise Taken(what, error.code) from error
            if error.code not in harmless:
                raise HostError(f"{what}: {error}{hint}") from error

    async def _open_route(self) -> AsyncIPRoute:
        from flannelpy.linux.netlink.iproute import AsyncIPRoute

        if self._route is None:
            try:
                self._route = await self._opened.enter_async_context(AsyncIPRoute())
            except OSError as error:
                raise _cannot_open(error) from error
        return self._route


def _cannot_open(error: OSError) -> HostError:
    return HostError(f"cannot open a netlink socket: {error.strerror}")
