"""A request and a response, as the pages see them.  Pure.

Source: RFC 9110.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import IPv4Address

TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Request:
    """``target``: path and query; ``host``: the header Host, empty without one.

    ``local`` and ``remote``: the addresses at the two ends of the connection.
    """

    method: str
    target: str
    host: str
    local: IPv4Address
    remote: IPv4Address

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def is_verbose(self) -> bool:
        """Whether the query has ``verbose``."""
        return any(part.partition("=")[0] == "verbose" for part in self.target.partition("?")[2].split("&"))


@dataclass(frozen=True, slots=True)
class Response:
    """A whole response; of one to HEAD, the body is not sent."""

    status: HTTPStatus
    body: bytes
    content_type: str = TEXT
    allow: str = ""  # the header Allow


def refusal(status: HTTPStatus, line: str) -> Response:
    """Return a response with one line of text."""
    return Response(status, f"{line}\n".encode())
