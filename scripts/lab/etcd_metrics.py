"""What an etcd has done since it started, from its own metrics.  Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Mapping


class EtcdWork(NamedTuple):
    """The work of an etcd since it started.

    ``requests``: those of clients.  etcd does not count the watches of v2.  A v3 request is a message of a client, so a
    call is one, and each message of a stream is one.  ``grpc_bytes``: of v3 requests and answers, behind the gateway.
    ``cpu_seconds`` has a resolution of 0.01.
    """

    requests: float
    grpc_bytes: float
    cpu_seconds: float
    resident_megabytes: float

    @classmethod
    def of(cls, metrics: Mapping[str, float]) -> Self:
        """Read the metrics, by name and labels."""
        return cls(
            total(metrics, "etcd_http_received_total") + total(metrics, "grpc_server_msg_received_total"),
            total(metrics, "etcd_network_client_grpc_received_bytes_total")
            + total(metrics, "etcd_network_client_grpc_sent_bytes_total"),
            total(metrics, "process_cpu_seconds_total"),
            total(metrics, "process_resident_memory_bytes") / 1e6,
        )


def calls(metrics: Mapping[str, float]) -> dict[str, int]:
    """Return how often each method of the v3 API was called.  Other services have methods of the same names."""
    pattern = re.compile(r'grpc_server_started_total\{grpc_method="(\w+)",grpc_service="etcdserverpb\.')
    found = ((pattern.match(name), value) for name, value in metrics.items())
    return {match[1]: int(value) for match, value in found if match}


def total(metrics: Mapping[str, float], name: str) -> float:
    """Return the sum of a metric over all labels; 0 if there is no such metric."""
    return sum(value for key, value in metrics.items() if key.partition("{")[0] == name)
