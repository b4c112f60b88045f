"""Opens the ports of the HTTP process, in the daemon: so a port that is taken ends the start with one line.

The daemon only holds the sockets, and accepts no connection.  While the process restarts, connections wait.
Counterpart: the health server of flanneld v0.8.0 and later, which panics if the port is taken.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import ExitStack
from ipaddress import IPv4Address

from flannelpy.errors import HostError
from flannelpy.options import Options

_LOOPBACK = IPv4Address("127.0.0.1")
_BACKLOG = 128


def addresses(options: Options) -> list[IPv4Address]:
    """Return the addresses to listen at: all, or those of the flags and loopback, each once."""
    wanted = dict.fromkeys([options.healthz_ip, _LOOPBACK, *options.metrics_ip])
    return [one for one in wanted if one.is_unspecified] or list(wanted)


def listen(options: Options) -> list[socket.socket]:
    """Return listening sockets at all addresses.  Raises HostError; then no socket is left open.

    An address of the flags that is none of this host's is an error also if all addresses are listened at.
    """
    with ExitStack() as opened:
        for one in (options.healthz_ip, *options.metrics_ip):
            _check_is_local(one, options.healthz_port)
        sockets = [opened.enter_context(_listener(one, options.healthz_port)) for one in addresses(options)]
        opened.pop_all()
    return sockets


def close(sockets: Iterable[socket.socket]) -> None:
    """Close the sockets."""
    for one in sockets:
        one.close()


def _check_is_local(address: IPv4Address, port: int) -> None:
    """Raise HostError if the kernel lets no socket have this address."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError as error:
            raise _failure(address, port, error) from error


def _listener(address: IPv4Address, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of the last run may linger
        listener.bind((str(address), port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise _failure(address, port, error) from error
    return listener


def _failure(address: IPv4Address, port: int, error: OSError) -> HostError:
    return HostError(
        f"cannot listen on TCP {address}:{port}: {error.strerror}; see -healthz-ip, -healthz-port and -metrics-ip"
    )
