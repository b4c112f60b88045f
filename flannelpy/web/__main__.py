"""The HTTP process, which the daemon starts: ``python -m flannelpy.web SETTINGS``."""

from __future__ import annotations

import asyncio
import codecs
import concurrent.futures.thread  # noqa: F401 - asyncio imports it with the first thread
import resource
import signal
import socket
import sys
from contextlib import closing
from ipaddress import IPv4Address

from flannelpy import logs
from flannelpy.tasks import run_together
from flannelpy.web.confinement import confine
from flannelpy.web.connections import Connections
from flannelpy.web.daemon_link import DaemonLinks
from flannelpy.web.pages import Pages
from flannelpy.web.settings import Settings


def main() -> None:
    """Serve until the daemon ends; its signals are those of a group or unit, and for the daemon to handle."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    settings = Settings.from_text(sys.argv[1])
    logs.configure(0)
    # From here on nothing may be imported: Python itself may lie below a directory of root alone.
    codecs.lookup("unicode_escape")
    confine(settings.daemon)
    asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    links = await DaemonLinks.over([socket.socket(fileno=each) for each in settings.controls])
    addresses = frozenset(map(IPv4Address, settings.metrics_addresses))
    pages = Pages(links, addresses, socket.gethostname(), with_peers=settings.with_peers)
    connections = Connections(pages.answer, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    with closing(links):
        await run_together(*(connections.serve(socket.socket(fileno=each)) for each in settings.listeners))


if __name__ == "__main__":
    main()
