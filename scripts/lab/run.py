"""Runs flannelpy on this machine, in the foreground; with an etcd of its own when no endpoint answers.

usage: python -m lab.run IFACE ENDPOINTS
"""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import ExitStack
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

from flannelpy.errors import UsageError
from flannelpy.registry.endpoints import parse_endpoint
from lab import CONFIG, ETCD_PREFIX
from lab.etcd_server import EtcdServer

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def answers(endpoint: str) -> bool:
    """Return whether an HTTP server answers there.  Raises UsageError if ``endpoint`` is malformed."""
    parse_endpoint(endpoint)
    try:
        # No proxy of the environment's answers in its place.
        build_opener(ProxyHandler({})).open(f"{endpoint}/version", timeout=2).close()
    except HTTPError:
        return True
    except (OSError, HTTPException):
        return False
    return True


def start_etcd(cleanup: ExitStack) -> str:
    """Start an etcd that holds a network config.  Returns its endpoint."""
    directory = cleanup.enter_context(TemporaryDirectory(prefix="flannelpy-etcd-"))
    etcd = cleanup.enter_context(EtcdServer(Path(directory), port=2379))
    etcd.put(f"{ETCD_PREFIX}/config", CONFIG)
    print(f"No etcd answered, so one runs at {etcd.url} for as long as flannelpy does.", flush=True)
    return etcd.url


def in_foreground(*argv: str) -> int:
    """Run a command as if it were us: a request to stop reaches it once, from the terminal or from elsewhere."""
    with subprocess.Popen(argv, start_new_session=True) as process:
        for number in STOP_SIGNALS:
            signal.signal(number, lambda *_: process.terminate())
        return process.wait()


def main(iface: str, endpoints: str) -> int:
    """Return flannelpy's exit code."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.default_int_handler)
    with ExitStack() as cleanup:
        if not any(answers(endpoint) for endpoint in endpoints.split(",")):
            endpoints = start_etcd(cleanup)
        flags = [f"-iface={iface}", f"-etcd-endpoints={endpoints}"]
        return in_foreground(sys.executable, "-m", "flannelpy", *flags)


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
    except UsageError as error:
        sys.exit(str(error))
