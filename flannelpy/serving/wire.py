"""Reports and requests as lines of JSON, for the control socket, and the JSON document of ``flannelpy status -json``.

A client sends one line, ``{"get": "report", "peers": true}`` or ``{"set": "log-level", "value": 1}``.  The daemon
answers in lines: ``{"report": …}``, then if the client asked for peers ``{"peers": {"network": "", "peers": […]}}`` for
up to a hundred peers each, then ``{"end": true}``; or ``{"error": "one line"}``.
A report has the fields of ``flannelpy.report`` under their names.  Addresses, networks and paths are strings, times are
Unix seconds.  A reader ignores fields that it does not know, and a field that is missing has its default: a daemon and
a client of different versions understand each other as long as both have the same ``SCHEMA``.
Counterpart: none; flanneld cannot be asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from flannelpy.diagnosis import is_well, problems
from flannelpy.errors import MessageError
from flannelpy.foreign import shown
from flannelpy.report import DaemonReport, PeerReport
from flannelpy.serving import records

RecordT = TypeVar("RecordT")

#: Changes when a reader of the former lines would misunderstand the new ones; a new field changes nothing.
SCHEMA = 1
#: The most bytes of a request, its newline included.
LONGEST_REQUEST = 4096

Json = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class GetReport:
    """The request for the report of the daemon.  ``with_peers``: and for all peers."""

    with_peers: bool = False


@dataclass(frozen=True, slots=True)
class SetLogLevel:
    """The request to log at ``level`` from now on: 0 is normal, 1 and more adds details."""

    level: int


@dataclass(frozen=True, slots=True)
class Peers:
    """A part of the answer: some peers of ``network``."""

    network: str
    peers: tuple[PeerReport, ...]


@dataclass(frozen=True, slots=True)
class End:
    """The last part of an answer."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer to a request that the daemon does not carry out; ``reason`` is one line."""

    reason: str


Request = GetReport | SetLogLevel
Part = DaemonReport | Peers | End | Refusal


class Answer(NamedTuple):
    """The report of a daemon.  ``peers``: of each network, by its name; empty if they were not asked for."""

    report: DaemonReport
    peers: Mapping[str, Sequence[PeerReport]]


def request_line(request: Request) -> bytes:
    """Return the line of a request."""
    match request:
        case GetReport(with_peers):
            return _line({"get": "report", "peers": with_peers})
        case SetLogLevel(level):
            return _line({"set": "log-level", "value": level})


def parse_request(line: bytes) -> Request:
    """Return the request of a line.  Raises MessageError, whose text is fit for ``Refusal``."""
    match _object(line):
        case {"get": "report", **others}:
            return GetReport(others.get("peers") is True)
        case {"set": "log-level", "value": int(level)} if level >= 0 and not isinstance(level, bool):
            return SetLogLevel(level)
        case {"set": "log-level", **others}:
            raise MessageError(f"log-level must be a whole number, from 0 up, not {shown(others.get('value'))}")
    raise MessageError(f"unknown request {shown(line.decode(errors='replace').strip())}: ask for the report")


def part_line(part: Part) -> bytes:
    """Return the line of a part of an answer."""
    match part:
        case DaemonReport():
            return _line({"report": encode_report(part)})
        case Peers(network, peers):
            return _line({"peers": {"network": network, "peers": [encode_peer(peer) for peer in peers]}})
        case End():
            return _line({"end": True})
        case Refusal(reason):
            return _line({"error": reason})


def parse_part(line: bytes) -> Part:
    """Return the part of an answer that a line has.  Raises MessageError."""
    match _object(line):
        case {"report": dict(report)}:
            return decode_report(report)
        case {"peers": {"network": str(network), "peers": list(peers)}}:
            return Peers(network, tuple(decode_peer(peer) for peer in peers))
        case {"end": True}:
            return End()
        case {"error": str(reason)}:
            return Refusal(shown(reason, LONGEST_REQUEST))
    raise MessageError(f"not an answer of flannelpy: {shown(line.decode(errors='replace').strip())}")


def answer(parts: Iterable[Part]) -> Answer:
    """Return the answer to ``GetReport`` that has these parts.  Raises MessageError if none is a report."""
    report: DaemonReport | None = None
    peers: dict[str, list[PeerReport]] = {}
    for part in parts:
        match part:
            case DaemonReport():
                report = part
            case Peers(network, some):
                peers.setdefault(network, []).extend(some)
    if report is None:
        raise MessageError("an answer without a report: run the flannelpy that the daemon is")
    return Answer(report, peers)


def document(report: DaemonReport, peers: Mapping[str, Sequence[PeerReport]]) -> dict[str, object]:
    """Return the document of ``status -json``, which ``json.dumps`` accepts: the report, peers and problems.

    ``peers``: those of each network, by its name.  docs/manual.md lists the keys: they are an API.
    """
    networks = [
        {**records.encode(network), "peers": [records.encode(peer) for peer in peers.get(network.name, ())]}
        for network in report.networks
    ]
    found = [records.encode(problem) for problem in problems(report)]
    return {**encode_report(report), "well": is_well(report), "networks": networks, "problems": found}


def document_text(answer: Answer) -> str:
    """Return the text of the document, with a newline at its end."""
    return json.dumps(document(answer.report, answer.peers), indent=2) + "\n"


def encode_report(report: DaemonReport) -> dict[str, object]:
    """Return a report as an object that ``json.dumps`` accepts."""
    return {"schema": SCHEMA, **records.encode(report)}


def decode_report(encoded: Json) -> DaemonReport:
    """Return the report that was encoded.  Raises MessageError for another schema, or for a wrong or missing value."""
    if encoded.get("schema") != SCHEMA:
        raise MessageError(
            f"the daemon's report has schema {shown(encoded.get('schema'))}, this flannelpy reads {SCHEMA}: "
            "run the flannelpy that the daemon is"
        )
    return _decode(DaemonReport, encoded)


def encode_peer(peer: PeerReport) -> dict[str, object]:
    """Return a peer as an object that ``json.dumps`` accepts."""
    return records.encode(peer)


def decode_peer(encoded: object) -> PeerReport:
    """Return the peer that was encoded.  Raises MessageError for a wrong or missing value."""
    return _decode(PeerReport, encoded)


def _line(message: Json) -> bytes:
    return json.dumps(message, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode() + b"\n"


def _object(line: bytes) -> dict[str, object]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise MessageError(f"not a line with a JSON object: {shown(line.decode(errors='replace').strip())}")
    return message


def _decode(kind: type[RecordT], encoded: object) -> RecordT:
    try:
        return records.decode(kind, encoded)
    except ValueError as error:
        raise MessageError(f"not a report of flannelpy: {shown(error)}") from error
