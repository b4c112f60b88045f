"""The text of a flag or variable -> its value: one reader for each kind of value.

Each reader raises ValueError, whose text names a valid value; ``endpoints`` and ``offload`` raise UsageError.
"""

from __future__ import annotations

import re
import warnings
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path

from flannelpy.datapath.source_check import SourceCheck
from flannelpy.options import Datapath, EtcdApi
from flannelpy.subnet.lease import is_host_id

_MAX_SECONDS = 3600
_MAX_PORT = 65535
MAX_LEVEL = 2**31 - 1
# A lease must outlast a slow answer of etcd; etcd counts its TTL in nanoseconds, in 63 bits.
MIN_LEASE_TTL = 5
MAX_LEASE_TTL = 10 * 365 * 24 * 3600


def optional(text: str) -> str | None:
    """Return the text; None if it is empty, which means not given."""
    return text or None


def required(text: str) -> str:
    """Return the text, which must not be empty."""
    if not text:
        raise ValueError("must not be empty")
    return text


def boolean(text: str) -> bool:
    """Return the truth value that Go reads.  Source: strconv.ParseBool of Go."""
    if text in {"1", "t", "T", "TRUE", "true", "True"}:
        return True
    if text in {"0", "f", "F", "FALSE", "false", "False"}:
        return False
    raise ValueError("must be true or false")


def level(text: str) -> int:
    """Return a whole number that glog takes.  Source: glog.Level of Go, an int32."""
    if not re.fullmatch(r"0*\d{1,10}", text, re.ASCII) or int(text[-10:]) > MAX_LEVEL:
        raise ValueError(f"must be a whole number from 0 to {MAX_LEVEL}")
    return int(text[-10:])


def regex(text: str) -> re.Pattern[str] | None:
    """Return a regular expression in Python's syntax; None if the text is empty, which means not given."""
    try:
        with warnings.catch_warnings(action="error"):  # for [[:alpha:]], which Go reads differently
            return re.compile(text, re.ASCII) if text else None
    except (re.error, Warning, OverflowError, RecursionError) as error:
        raise ValueError(f"must be a regular expression: {error}") from None


def host_id(text: str) -> str | None:
    """Return a host ID, which stays readable in the store; None if the text is empty, which means not given."""
    if not is_host_id(text):
        raise ValueError("must be at most 64 letters, digits and ._:- only")
    return text or None


def lease_ttl(text: str) -> int:
    """Return the seconds of a lease's TTL, a duration such as 1h30m.

    Source: time.ParseDuration of Go, without fractions of a second: a TTL in etcd is a whole number of seconds.
    """
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text, re.ASCII)
    hours, minutes, seconds = (int(part or 0) for part in parts.groups()) if parts else (0, 0, 0)
    total = hours * 3600 + minutes * 60 + seconds
    if not MIN_LEASE_TTL <= total <= MAX_LEASE_TTL:
        raise ValueError("must be a duration such as 24h, 90m or 1h30m, from 5s to 87600h")
    return total


def minutes(text: str) -> int:
    """Return the seconds of a whole number of minutes."""
    if not re.fullmatch(r"0*[1-9]\d{0,8}", text, re.ASCII):
        raise ValueError("must be a whole number of minutes, from 1 up")
    return int(text) * 60


def resync_seconds(text: str) -> int:
    """Return the seconds between two checks, at most an hour: a removed rule stays missing for up to that time."""
    if not re.fullmatch(r"0*[1-9]\d{0,3}", text, re.ASCII) or int(text) > _MAX_SECONDS:
        raise ValueError(f"must be a whole number of seconds, from 1 to {_MAX_SECONDS}")
    return int(text)


def source_check(text: str) -> SourceCheck:
    """Return the source check of that name."""
    try:
        return SourceCheck(text)
    except ValueError:
        raise ValueError(f"must be {', '.join(SourceCheck)}") from None


def address(text: str) -> IPv4Address | None:
    """Return the IPv4 address of a host; None if the text is empty, which means not given."""
    from flannelpy.addressing.addresses import special_use

    try:
        parsed = IPv4Address(text) if text else None
    except ValueError:
        raise ValueError("must be an IPv4 address, such as 172.17.8.101") from None
    if parsed and (block := special_use(parsed)):
        raise ValueError(f"must be the address of a host, such as 172.17.8.101; this one is in {block}")
    return parsed


def listen_address(text: str) -> IPv4Address:
    """Return the IPv4 address of a listening socket; 0.0.0.0 is all."""
    from flannelpy.addressing.addresses import special_use

    with suppress(ValueError):
        parsed = IPv4Address(text)
        if parsed.is_unspecified or parsed.is_loopback or not special_use(parsed):
            return parsed
    raise ValueError("must be an IPv4 address of this host, such as 172.17.8.101, or 0.0.0.0 for all")


def metrics_address(text: str) -> IPv4Address | None:
    """Return an address of ``listen_address``; None if the text is empty, which means not given."""
    return listen_address(text) if text else None


def port(text: str) -> int:
    """Return the number of a port; 0 is none."""
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or int(text) > _MAX_PORT:
        raise ValueError(f"must be a port from 1 to {_MAX_PORT}, or 0 for none")
    return int(text)


def endpoints(text: str) -> tuple[str, ...]:
    """Return URLs that were separated by commas; the etcd client checks each.  Raises UsageError."""
    from flannelpy.registry.endpoints import parse_endpoint

    urls = tuple(url.strip() for url in text.split(","))
    for url in urls:
        parse_endpoint(url)
    return urls


def etcd_api(text: str) -> EtcdApi:
    """Return the version of etcd's API."""
    try:
        return EtcdApi(text)
    except ValueError:
        raise ValueError(f"must be {', '.join(EtcdApi)}") from None


def networks(text: str) -> tuple[str, ...]:
    """Return names that were separated by commas, none if the text is empty.

    The names become parts of keys and of file names.
    """
    names = tuple(name.strip() for name in text.split(",")) if text else ()
    if not all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", name) for name in names):
        raise ValueError("must be names of letters, digits and ._- with commas between them, such as blue,green")
    if len(set(names)) < len(names):
        raise ValueError("must not name a network twice")
    return names


def offload(text: str) -> frozenset[str] | None:
    """Return names of offloads that were separated by commas; None for auto.  Raises UsageError."""
    if text == "auto":
        return None
    from flannelpy.datapath.offloads import parse

    return frozenset(parse(text))


def datapath(text: str) -> Datapath:
    """Return what carries the packets of the udp backend."""
    try:
        return Datapath(text)
    except ValueError:
        raise ValueError(f"must be {', '.join(Datapath)}") from None


def path(text: str) -> Path:
    """Return the path of a file or directory."""
    file = Path(required(text))
    if not file.name:
        raise ValueError("must name a file or directory below /")
    return file


def optional_path(text: str) -> Path | None:
    """Return the path of a file; None if the text is empty, which means not given."""
    return path(text) if text else None
