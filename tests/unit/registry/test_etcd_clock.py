"""The clock of an endpoint, by the answers of a server on this machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from flannelpy import cli
from flannelpy.registry import etcd_clock
from flannelpy.registry.etcd_clock import EndpointClock


@contextmanager
def server(date: str) -> Iterator[str]:
    """A server whose answers have this Date header, or none."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/version"
            self.send_response_only(200)
            if date:
                self.send_header("Date", date)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = Thread(target=found.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{found.server_port}"
        finally:
            found.shutdown()
            thread.join()


def compare(*urls: str) -> list[EndpointClock]:
    return list(asyncio.run(etcd_clock.compare(cli.parse([f"-etcd-endpoints={','.join(urls)}"]))))


@pytest.mark.parametrize("ahead", [0, 60, -3600])
def test_the_date_header_tells_how_far_our_clock_is_ahead(ahead: int) -> None:
    with server(formatdate(time.time() - ahead, usegmt=True)) as url:
        [found] = compare(url)
    assert found.failure == ""
    assert found.ahead == pytest.approx(ahead, abs=2)
    assert str(found.url) == url


@pytest.mark.parametrize("date", ["", "yesterday"])
def test_without_a_date_the_clock_is_not_known(date: str) -> None:
    with server(date) as url:
        [found] = compare(url)
    assert (found.failure, found.ahead) == ("", None)


def test_each_endpoint_is_asked_and_a_silent_one_has_its_cause() -> None:
    with server(formatdate(usegmt=True)) as url:
        answering, silent = compare(url, "http://127.0.0.1:1")
    assert answering.ahead is not None
    assert (silent.failure, silent.ahead) == ("connection refused", None)
