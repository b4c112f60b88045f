"""The sockets of one connection to the kernel, and what their errors mean.

What a check reads goes through our own messages, because pyroute2 takes milliseconds; pyroute2 makes all other
requests.  It takes a tenth of a second to import, so it is imported when the first connection is opened.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator
from contextlib import AsyncExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from flannelpy.errors import HostError
from flannelpy.linux.netlink.socket import RtnetlinkSocket

if TYPE_CHECKING:
    from pyroute2 import AsyncIPRoute

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
        from pyroute2 import AsyncIPRoute

        try:
            async with AsyncExitStack() as opened:
                self._route: AsyncIPRoute = await opened.enter_async_context(AsyncIPRoute())
                self._socket = RtnetlinkSocket()
                opened.pop_all()
        except OSError as error:
            raise HostError(f"cannot open a netlink socket: {error.strerror}") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        await self._route.__aexit__(kind, error, trace)


@contextmanager
def host_errors(
    what: str, *, harmless: Collection[int] = (), taken: Collection[int] = (), hint: str = ""
) -> Iterator[None]:
    """Turn an error of pyroute2 into a HostError, ``<what>: <error><hint>``.

    An errno in ``harmless`` is no error, and one in ``taken`` becomes a ``Taken`` with the text ``what``.
    """
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except NetlinkError as error:
        if error.code in taken:
            raise Taken(what, error.code) from error
        if error.code not in harmless:
            raise HostError(f"{what}: {error}{hint}") from error
