"""The time of day at an endpoint of etcd, by the Date header of its answer.

Source: RFC 9110, section 6.6.1; etcd serves ``/version`` to everybody, whichever of its APIs are on.
"""

from __future__ import annotations

import contextlib
import functools
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from flannelpy.registry import endpoints
from flannelpy.registry.endpoints import CallThreads, Endpoint, NoAnswer, no_answer, parse_endpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flannelpy.options import Options

# The header has whole seconds, so on average the time is half a second later.
_HALF = 0.5


class EndpointClock(NamedTuple):
    """An endpoint: why it gave no answer, or by how many seconds this host's clock is ahead of its clock.

    ``ahead`` is None without an answer, and for an answer without a date.
    """

    url: Endpoint
    failure: str = ""
    ahead: float | None = None


async def compare(options: Options) -> Sequence[EndpointClock]:
    """Return the clock of every endpoint, which are all asked at the same time.  Raises UsageError."""
    import asyncio

    threads = CallThreads()
    urls = [parse_endpoint(text) for text in options.etcd_endpoints]
    return await asyncio.gather(*(threads.run(functools.partial(_ask, url, options)) for url in urls))


def _ask(url: Endpoint, options: Options) -> EndpointClock:
    """Ask one endpoint, in a thread."""
    try:
        return EndpointClock(url, "", _ahead(url, options))
    except NoAnswer as failure:
        return EndpointClock(url, str(failure))


def _ahead(url: Endpoint, options: Options) -> float | None:
    """Return by how many seconds our clock is ahead; None for an answer without a date.  Raises NoAnswer."""
    import urllib3

    from flannelpy.registry.bounded_http import bound

    tls: dict[str, Any] = {"key_file": options.etcd_keyfile, "cert_file": options.etcd_certfile}
    with urllib3.PoolManager(retries=urllib3.Retry(0), ca_certs=options.etcd_cafile, **tls) as pools:
        bound(pools)
        patience = urllib3.Timeout(total=endpoints.REPLY_TIMEOUT)
        began = time.time()
        try:
            answer = pools.request("GET", f"{url}/version", timeout=patience, redirect=False)
        except urllib3.exceptions.HTTPError as error:
            raise no_answer(error) from error
        ours = (began + time.time()) / 2
    with contextlib.suppress(ValueError, TypeError):
        return ours - parsedate_to_datetime(answer.headers.get("Date", "")).timestamp() - _HALF
    return None
