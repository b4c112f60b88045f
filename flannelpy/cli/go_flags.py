"""Go's spellings of flags, suggestions for unknown flags, and the flags that flannelpy does not support.

Source: package flag of Go.  A flag has one dash or two, and its value after ``=`` or in the next word; a boolean has it
after ``=`` only.  The flags end at ``--`` or at the first word that is not a flag.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NoReturn

from flannelpy.cli.flags import BY_NAME, Flag, variable
from flannelpy.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_KEPT_IN_ETCD = "config and leases are kept in etcd; give every host -etcd-endpoints"

#: Flags of flanneld, of v0.5.5 and later versions, that flannelpy does not have, and what to do instead.
UNSUPPORTED = {
    "listen": "there is no server mode; give every host -etcd-endpoints",
    "remote": "there is no client mode; give every host -etcd-endpoints",
    "remote-keyfile": "there is no client mode; use -etcd-keyfile",
    "remote-certfile": "there is no client mode; use -etcd-certfile",
    "remote-cafile": "there is no client mode; use -etcd-cafile",
    "vmodule": "the log has one level for all modules; use -v",
    "log_backtrace_at": "use -v=1 for more detail",
    "logtostderr": "the log always goes to stderr; leave it out",
    "alsologtostderr": "the log always goes to stderr; leave it out",
    "stderrthreshold": "the whole log goes to stderr; filter its lines by their first letter (I, W, E)",
    "log_dir": "the log goes to stderr; redirect that, or read it with journalctl",
    "kube-subnet-mgr": _KEPT_IN_ETCD,
    "kube-api-url": _KEPT_IN_ETCD,
    "kubeconfig-file": _KEPT_IN_ETCD,
    "kube-annotation-prefix": "leases are kept in etcd; use -etcd-prefix",
    "net-config-path": "the network config is kept in etcd; put it at KEY/config, where KEY is -etcd-prefix",
    "set-node-network-unavailable": "there is no Kubernetes mode; leave it out",
    "public-ipv6": "there is no IPv6 overlay; use -public-ip",
    "ip-masq-fully-random-disable": "-ip-masq lets the kernel choose source ports as it does by default; leave it out",
    "ip-blackhole-route": "flannelpy adds no blackhole routes; leave it out, or add them with ip route",
}


def go_spelling(argv: Sequence[str], flags: Mapping[str, Flag] = BY_NAME) -> Iterator[str]:
    """Yield every flag of ``argv``, of which ``flags`` has the names, as ``--name=value``.  Raises UsageError."""
    words = iter(argv)
    before = ""
    for word in words:
        if word == "--":
            refuse_extra(next(words, None), before, flags)
        elif word == "-" or not word.startswith("-"):
            refuse_extra(word, before, flags)
        else:
            yield normalized(word, words, flags)
        before = word


def normalized(word: str, following: Iterator[str], flags: Mapping[str, Flag]) -> str:
    """Return the flag of ``word`` as ``--name=value``; the value may be in the following word.  Raises UsageError."""
    name, equals, text = word.removeprefix("-").removeprefix("-").partition("=")
    if not name or name.startswith("-"):
        raise UsageError(f"bad flag {word!r}: write -name=value or --name=value")
    flag = flags.get(name) or refuse_unknown(name, flags)
    if not equals:
        text = value_of(flag, following)
    return f"--{flag.flag}={text}"


def value_of(flag: Flag, following: Iterator[str]) -> str:
    """Return the value of a flag that was written without ``=``.  Raises UsageError."""
    if not flag.takes_value:
        return "true"
    text = next(following, None)
    if text is None:
        raise UsageError(f"-{flag.flag} needs a value: {flag.synopsis}")
    return text


def refuse_unknown(name: str, flags: Mapping[str, Flag]) -> NoReturn:
    """Raise UsageError, whose text names what to write in place of a flag that does not exist."""
    if name in UNSUPPORTED:
        raise UsageError(f"-{name} is not supported: {UNSUPPORTED[name]}")
    from difflib import get_close_matches

    close = get_close_matches(name, flags, n=1)
    raise UsageError(f"unknown flag -{name}: " + (f"did you mean -{close[0]}?" if close else "-help lists all flags"))


def refuse_extra(word: str | None, before: str, flags: Mapping[str, Flag]) -> None:
    """Raise UsageError if there is a word that is neither a flag nor a value; ``before``: the word in front of it."""
    if word is None:
        return
    flag = flags.get(before.lstrip("-"))
    if flag and not flag.takes_value:
        raise UsageError(f"extra argument {word!r}: the value of a boolean follows '=', as in -{flag.flag}=true")
    raise UsageError(f"extra argument {word!r}: only flags are expected, -help lists them")


def refuse_unsupported_variables() -> None:
    """Raise UsageError if the variable of an unsupported flag is set: flanneld would use it."""
    for name, instead in UNSUPPORTED.items():
        if os.environ.get(variable(name)):
            raise UsageError(f"{variable(name)} is not supported: {instead}")
