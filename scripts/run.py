"""Runs flannelpy on this machine, in the foreground; with an etcd of its own when no endpoint answers.

usage: run.py IFACE ENDPOINTS
"""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from etcd_server import EtcdServer

CONFIG_KEY = "/v2/keys/coreos.com/network/config"
CONFIG = b"value=%7B%22Network%22%3A%2211.0.0.0%2F16%22%7D"  # {"Network":"11.0.0.0/16"}


def answers(endpoint: str) -> bool:
    """Whether an etcd, or at least somebody who speaks HTTP, is there."""
    try:
        urlopen(f"{endpoint}/version", timeout=2).close()
    except HTTPError:
        return True
    except OSError:
        return False
    return True


def start_etcd(cleanup: ExitStack) -> str:
    """Start an etcd that holds a network config.  Returns its endpoint."""
    directory = cleanup.enter_context(TemporaryDirectory(prefix="flannelpy-etcd-"))
    endpoint = cleanup.enter_context(EtcdServer(Path(directory), port=2379)).url
    urlopen(Request(endpoint + CONFIG_KEY, CONFIG, method="PUT"), timeout=5).close()
    print(f"No etcd answered, so one runs at {endpoint} for as long as flannelpy does.", flush=True)
    return endpoint


def in_foreground(*argv: str) -> int:
    """Run a command as if it were us: a request to stop reaches it once, from the terminal or from elsewhere."""
    with subprocess.Popen(argv, start_new_session=True) as process:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: process.terminate())
        return process.wait()


def main(iface: str, endpoints: str) -> int:
    """Returns flannelpy's exit code."""
    with ExitStack() as cleanup:
        if not any(answers(endpoint) for endpoint in endpoints.split(",")):
            endpoints = start_etcd(cleanup)
        flags = [f"-iface={iface}", f"-etcd-endpoints={endpoints}"]
        return in_foreground(sys.executable, "-m", "flannelpy", *flags)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
