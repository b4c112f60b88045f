"""The parts of reports that tests compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flannelpy.report import BackendReport


def peer_counts(report: BackendReport) -> tuple[str, int | None, int | None]:
    """Return the type of a backend, and how many peers can be reached and how many cannot."""
    return report.type, report.next_hops, report.unreachable
