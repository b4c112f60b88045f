"""An HTTP server in place of etcd's v3 JSON gateway, for answers that a healthy etcd does not give."""

from __future__ import annotations

import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, TypeAlias

from support.etcd_faults import serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: (path below /v3/, request) -> (status, body)
Answers: TypeAlias = "Callable[[str, dict[str, Any]], tuple[int, bytes]]"


@contextmanager
def gateway(answers: Answers) -> Iterator[str]:
    """Answer every request with what ``answers`` returns for it; yield the URL of the server."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, body = answers(self.path.removeprefix("/v3/"), request)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as url:
        yield url
