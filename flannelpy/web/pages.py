"""Which page a client gets.

| page | content | for whom |
|---|---|---|
| ``/healthz``, ``/livez`` | 200 while the event loop of the daemon runs, else 503 | every client |
| ``/readyz`` | 200 while all networks are ready, else 503; ``?verbose``: states and problems | every client |
| ``/metrics`` | the metrics for Prometheus | clients on this host, and at the addresses of -metrics-ip |
| ``/status.json`` | what ``flannelpy status -json`` prints | the same |

Those clients alone get the text of a problem too, which has addresses in it; the others get its code.
Counterpart: the health server of flanneld v0.8.0 and later: ``/healthz``, always 200, and since v0.28.9 ``/readyz``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from http import HTTPStatus
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import NamedTuple, Protocol

from flannelpy.diagnosis import problems
from flannelpy.errors import DaemonUnavailable
from flannelpy.report import DaemonReport, NetworkState
from flannelpy.serving import metrics, wire
from flannelpy.web.fresh import Fresh
from flannelpy.web.messages import Request, Response, refusal

# A probe of Kubernetes waits one second by default, Prometheus ten.
_HEALTH_SECONDS = 2.0
_PAGE_SECONDS = 8.0
_METHODS = ("GET", "HEAD")
_ALL_ADDRESSES = IPv4Address(0)


class Daemon(Protocol):
    """What asks the daemon."""

    async def ask(self, *, with_peers: bool) -> wire.Answer:
        """Return its report.  Raises DaemonUnavailable; waits for as long as the daemon does not answer."""


class _Page(NamedTuple):
    content: Callable[[Request], Awaitable[Response]]
    seconds: float
    is_restricted: bool


class Pages:
    """All pages.  ``metrics_addresses``: local addresses at which every client may read all of them.

    ``host_name``: that of this host, one of the names that a client may use for it.
    """

    def __init__(
        self, daemon: Daemon, metrics_addresses: frozenset[IPv4Address], host_name: str, *, with_peers: bool
    ) -> None:
        self._metrics_addresses = metrics_addresses
        self._names = {"localhost", host_name.lower()}
        self._with_peers = with_peers
        self._report = Fresh(lambda: daemon.ask(with_peers=False))
        self._whole = Fresh(lambda: daemon.ask(with_peers=True))
        self._metrics = Fresh(self._render_metrics)
        self._status = Fresh(self._render_status)
        health = _Page(self._health, _HEALTH_SECONDS, is_restricted=False)
        self._pages = {
            "/healthz": health,
            "/livez": health,
            "/readyz": _Page(self._readiness, _HEALTH_SECONDS, is_restricted=False),
            "/metrics": _Page(self._metrics_page, _PAGE_SECONDS, is_restricted=True),
            "/status.json": _Page(self._status_page, _PAGE_SECONDS, is_restricted=True),
        }

    async def answer(self, request: Request) -> Response:
        """Return the response to any request."""
        page = self._pages.get(request.path)
        if page is None:
            return refusal(HTTPStatus.NOT_FOUND, f"no such page: there are {', '.join(self._pages)}")
        if request.method not in _METHODS:
            return Response(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET and HEAD\n", allow=", ".join(_METHODS))
        if page.is_restricted and (reason := self._why_refused(request)):
            return refusal(HTTPStatus.FORBIDDEN, reason)
        try:
            async with asyncio.timeout(page.seconds):
                return await page.content(request)
        except (TimeoutError, DaemonUnavailable):
            return refusal(HTTPStatus.SERVICE_UNAVAILABLE, "flanneld does not answer")

    def _why_refused(self, request: Request) -> str:
        """Return why a client may not read restricted pages, or ""."""
        if not self._is_admitted(request):
            return f"{request.path} is only for clients on this host, and at the addresses of -metrics-ip"
        if not self._is_named_by(request.host):
            return "the header Host is no address, nor the name of this host"
        return ""

    def _is_admitted(self, request: Request) -> bool:
        """Return whether the client is on this host, or at an address that is open to all.

        Both ends count: with ``route_localnet``, as kube-proxy sets it, other hosts can reach loopback addresses.
        """
        is_here = request.local.is_loopback and request.remote.is_loopback
        return is_here or not self._metrics_addresses.isdisjoint({request.local, _ALL_ADDRESSES})

    def _is_named_by(self, host: str) -> bool:
        """Return whether Host is an address or a name of this host.

        A page of a foreign site that has its own name lead to this host, by DNS rebinding, sends that name.
        """
        name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
        return not name or name.lower() in self._names or _is_address(name)

    async def _health(self, _: Request) -> Response:
        await self._report.get()
        return Response(HTTPStatus.OK, b"flanneld is running")

    async def _readiness(self, request: Request) -> Response:
        report = (await self._report.get()).report
        is_ready = all(network.state is NetworkState.READY for network in report.networks)
        text = "flanneld is ready" if is_ready else "flanneld is not ready yet"
        if request.is_verbose:
            text = "\n".join([text, *_details(report, not self._why_refused(request)), ""])
        return Response(HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE, text.encode())

    async def _metrics_page(self, _: Request) -> Response:
        return Response(HTTPStatus.OK, await self._metrics.get(), metrics.CONTENT_TYPE)

    async def _status_page(self, _: Request) -> Response:
        return Response(HTTPStatus.OK, await self._status.get(), "application/json")

    async def _render_metrics(self) -> bytes:
        report, peers = await (self._whole if self._with_peers else self._report).get()
        text = await asyncio.to_thread(metrics.exposition, report, peers if self._with_peers else None)
        return text.encode()

    async def _render_status(self) -> bytes:
        answer = await self._whole.get()
        return await asyncio.to_thread(_json, answer)


def _details(report: DaemonReport, with_text: bool) -> Iterator[str]:
    """Yield a line for each network, and one for each problem."""
    for network in report.networks:
        yield f"{network.title}: {network.state}"
    for problem in problems(report):
        yield f"{problem.title}: {problem.code}" + (f": {problem.text}; {problem.remedy}" if with_text else "")


def _json(answer: wire.Answer) -> bytes:
    return wire.document_text(answer).encode()


def _is_address(text: str) -> bool:
    try:
        IPv6Address(text) if ":" in text else IPv4Address(text)
    except AddressValueError:
        return False
    return True
