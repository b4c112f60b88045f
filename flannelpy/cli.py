"""The command line: flags, ``FLANNELD_*`` variables, exit codes.  No logic.

Go's spellings are rewritten to the one form that Go and click read alike, ``--name=value`` (``go_spelling``); click
does the rest: variables, defaults, help.  A flag wins over its variable, an empty variable counts as unset.

Exit codes: what the daemon returns, 2 for a wrong flag or variable, 130 for Ctrl-C before the daemon listens to it.
Counterpart: the flag set of flanneld v0.5.5, names and defaults; -etcd-username and -etcd-password are those of v0.13,
-iface-regex, -iface-can-reach and the repeated -iface those of v0.20.2.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from ipaddress import IPv4Address
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click
from click.core import ParameterSource

from flannelpy import __version__
from flannelpy.datapath.source_check import SourceCheck
from flannelpy.errors import FlannelError, UsageError
from flannelpy.options import Options
from flannelpy.subnet.lease import is_host_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PROGRAM = "flannelpy"

ABOUT = """\
Usage: flannelpy [flags]

Leases a subnet of the network that etcd describes to this host, and connects
its containers with those of the other hosts: over UDP, VXLAN or plain routes.

Write a flag as -name=value, -name value, --name=value or --name value, and a
boolean as -name, -name=true or -name=false. A flag wins over its variable, and
an empty variable counts as unset.
"""

EXAMPLES = """\
Examples:
  The interface by name, etcd on this host:
    flannelpy -iface=eth1

  Several etcd endpoints, over TLS:
    flannelpy -iface=eth1 \\
      -etcd-endpoints=https://10.0.0.1:2379,https://10.0.0.2:2379 \\
      -etcd-cafile=/etc/etcd/ca.pem \\
      -etcd-certfile=/etc/etcd/host.pem -etcd-keyfile=/etc/etcd/host-key.pem

  Under systemd, by variables in /etc/default/flannelpy:
    FLANNELD_IFACE=eth1
    FLANNELD_ETCD_ENDPOINTS=http://10.0.0.1:2379
"""

_KEPT_IN_ETCD = "config and leases are kept in etcd; give every host -etcd-endpoints"

# Flags of v0.5.5 and of the later originals that flannelpy does without, and what to do instead.
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
    "healthz-ip": "there is no health port; a file ready is beside the subnet file while all is well",
    "healthz-port": "there is no health port; a file ready is beside the subnet file while all is well",
    "ip-masq-fully-random-disable": "-ip-masq lets the kernel choose source ports as it does by default; leave it out",
    "ip-blackhole-route": "flannelpy adds no blackhole routes; leave it out, or add them with ip route",
}

# Flags that are of no use one without the other.
PAIRS = (("etcd_keyfile", "etcd_certfile"), ("etcd_username", "etcd_password"))

_MOST_SECONDS = 3600
# A lease has to outlive an etcd that is slow to answer, and etcd counts its time in nanoseconds.
MIN_LEASE_TTL = 5
MAX_LEASE_TTL = 10 * 365 * 24 * 3600


# How the text of a value is read.  Each raises ValueError, which says what would be right.


def optional(text: str) -> str | None:
    """Any text; none means not given."""
    return text or None


def required(text: str) -> str:
    """Any text but none."""
    if not text:
        raise ValueError("must not be empty")
    return text


def boolean(text: str) -> bool:
    """Source: strconv.ParseBool of Go."""
    if text in {"1", "t", "T", "TRUE", "true", "True"}:
        return True
    if text in {"0", "f", "F", "FALSE", "false", "False"}:
        return False
    raise ValueError("must be true or false")


def level(text: str) -> int:
    """A whole number from 0 up."""
    if not (text.isascii() and text.isdigit()):
        raise ValueError("must be a whole number from 0 up")
    return int(text)


def regex(text: str) -> re.Pattern[str] | None:
    """A regular expression of Python's; no text means not given."""
    try:
        with warnings.catch_warnings(action="error"):  # of what Go reads in another way, such as [[:alpha:]]
            return re.compile(text, re.ASCII) if text else None
    except (re.error, Warning, OverflowError, RecursionError) as error:
        raise ValueError(f"must be a regular expression: {error}") from None


def host_id(text: str) -> str | None:
    """A name that stays readable in the store; no text means not given."""
    if not is_host_id(text):
        raise ValueError("must be at most 64 letters, digits and ._:- only")
    return text or None


def duration(text: str) -> int:
    """Seconds.  Source: time.ParseDuration of Go, but for fractions of a second, which etcd does not know."""
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text, re.ASCII)
    hours, minutes, seconds = (int(part or 0) for part in parts.groups()) if parts else (0, 0, 0)
    total = hours * 3600 + minutes * 60 + seconds
    if not MIN_LEASE_TTL <= total <= MAX_LEASE_TTL:
        raise ValueError("must be a duration such as 24h, 90m or 1h30m, from 5s to 87600h")
    return total


def minutes(text: str) -> int:
    """Seconds in so many whole minutes."""
    if not re.fullmatch(r"0*[1-9]\d{0,8}", text, re.ASCII):
        raise ValueError("must be a whole number of minutes, from 1 up")
    return int(text) * 60


def seconds(text: str) -> int:
    """So many whole seconds, an hour at most: a rule that was removed stays away for that time."""
    if not re.fullmatch(r"0*[1-9]\d{0,3}", text, re.ASCII) or int(text) > _MOST_SECONDS:
        raise ValueError(f"must be a whole number of seconds, from 1 to {_MOST_SECONDS}")
    return int(text)


def source_check(text: str) -> SourceCheck:
    """One of its names."""
    try:
        return SourceCheck(text)
    except ValueError:
        raise ValueError(f"must be {', '.join(SourceCheck)}") from None


def address(text: str) -> IPv4Address | None:
    """The IPv4 address of a host; no text means not given."""
    from flannelpy.addressing.addresses import special_use

    try:
        parsed = IPv4Address(text) if text else None
    except ValueError:
        raise ValueError("must be an IPv4 address, such as 172.17.8.101") from None
    if parsed and (block := special_use(parsed)):
        raise ValueError(f"must be the address of a host, such as 172.17.8.101; this one is in {block}")
    return parsed


def endpoints(text: str) -> tuple[str, ...]:
    """URLs between commas, each checked by the room that will speak to it.  Raises UsageError."""
    from flannelpy.registry.endpoints import parse_endpoint

    urls = tuple(url.strip() for url in text.split(","))
    for url in urls:
        parse_endpoint(url)
    return urls


def networks(text: str) -> tuple[str, ...]:
    """Names between commas, which become parts of keys and of file names; no text means not given."""
    names = tuple(name.strip() for name in text.split(",")) if text else ()
    if not all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", name) for name in names):
        raise ValueError("must be names of letters, digits and ._- with commas between them, such as blue,green")
    if len(set(names)) < len(names):
        raise ValueError("must not name a network twice")
    return names


def offload(text: str) -> frozenset[str] | None:
    """Names between commas, checked by the room that knows them; auto is none given.  Raises UsageError."""
    if text == "auto":
        return None
    from flannelpy.datapath.offloads import parse

    return frozenset(parse(text))


def path(text: str) -> Path:
    """The path of a file or directory."""
    file = Path(required(text))
    if not file.name:
        raise ValueError("must name a file or directory below /")
    return file


# The flags.


def variable(name: str) -> str:
    """The variable of a flag: -etcd-prefix is FLANNELD_ETCD_PREFIX."""
    return "FLANNELD_" + name.upper().replace("-", "_")


class Flag(click.Option):
    """A flag of Go's: its place in -help, its variable, and ``read``, which makes a value of its text."""

    def __init__(
        self,
        declared: str,
        section: str,
        read: Callable[[str], object],
        says: str,
        *,
        value: str = "",
        default: str = "",
        unset: str = "none",
        has_variable: bool = True,
        is_repeatable: bool = False,
    ) -> None:
        self.flag, _, field = declared.partition(" ")
        self.section = section
        self.read = read
        self.synopsis = f"-{self.flag}={value}" if value else f"-{self.flag}"
        heading = f"{self.synopsis:<27} {variable(self.flag)}" if has_variable else self.synopsis
        self.manual = f"  {heading}\n      {says}\n      Default: {default or unset}.\n"
        super().__init__(
            [f"--{self.flag}", field or self.flag.replace("-", "_")],
            envvar=variable(self.flag) if has_variable else None,
            default=None if is_repeatable else default,
            multiple=is_repeatable,
            callback=Flag.checked,
        )

    @property
    def takes_value(self) -> bool:
        """Whether the next word of the command line is its value, as for all but booleans."""
        return self.read is not boolean

    def spelled(self, context: click.Context) -> str:
        """What the user wrote: the flag or the variable."""
        assert self.name is not None
        by_variable = context.get_parameter_source(self.name) is ParameterSource.ENVIRONMENT
        return variable(self.flag) if by_variable else f"-{self.flag}"

    @staticmethod
    def checked(context: click.Context, flag: click.Parameter, text: str | tuple[str, ...]) -> object:
        """The value that ``text`` stands for, or the values of a repeatable flag.

        Raises UsageError, which names flag or variable.
        """
        assert isinstance(flag, Flag)
        if isinstance(text, str):
            return flag.parsed(context, text)
        values = [flag.parsed(context, one) for one in text]
        return tuple(value for value in values if value is not None)

    def parsed(self, context: click.Context, text: str) -> object:
        """What one text stands for.  Raises UsageError."""
        try:
            return self.read(text)
        except ValueError as error:
            raise UsageError(f"bad value {text!r} for {self.spelled(context)}: {error}") from None
        except UsageError as error:  # from another room, which holds the value back if need be, and knows no variable
            raise UsageError(f"{self.spelled(context)}: {str(error).removeprefix(f'-{self.flag}: ')}") from None


class InfoFlag(Flag):
    """A flag that prints to stderr and ends, before anything else is looked at.  It has no variable."""

    def __init__(self, flag: str, says: str, answer: Callable[[], str]) -> None:
        super().__init__(flag, "About", boolean, says, default="false")
        self.manual = f"  {self.synopsis}\n      {says}\n"
        self.answer = answer
        self.is_eager, self.expose_value = True, False
        self.envvar, self.callback = None, InfoFlag.given

    @staticmethod
    def given(context: click.Context, flag: click.Parameter, text: str) -> None:
        """Ends the process with exit code 0, unless the flag is false."""
        assert isinstance(flag, InfoFlag)
        if Flag.checked(context, flag, text):
            click.echo(flag.answer(), err=True)
            sys.exit(0)


def version() -> str:
    """The version, and whether the packet code is compiled."""
    from flannelpy.packet import build

    return f"{PROGRAM} {__version__} ({build()})"


def usage() -> str:
    """All flags by section, 80 columns wide."""
    sections = [
        f"{name}:\n" + "".join(flag.manual for flag in flags)
        for name, flags in groupby(FLAGS, lambda flag: flag.section)
    ]
    return "\n".join([ABOUT, *sections, EXAMPLES.rstrip()])


FLAGS = (
    Flag(
        "iface",
        "Interface",
        optional,
        "The interface that the other hosts reach this one by. Repeat the flag to\n"
        "      name several, of which the first one that exists is used; the variable\n"
        "      has spaces between them.",
        value="NAME|IP",
        unset="that of the public IP or of the default route",
        is_repeatable=True,
    ),
    Flag(
        "iface-regex",
        "Interface",
        regex,
        "The same by a regular expression that is found in its address or else in\n"
        "      its name, tried after -iface; repeatable in the same way.",
        value="REGEX",
        is_repeatable=True,
    ),
    Flag(
        "iface-can-reach",
        "Interface",
        address,
        "The same by the route to that address, tried last.",
        value="IP",
    ),
    Flag(
        "public-ip",
        "Interface",
        address,
        "The address that the other hosts send to: one of this host's, or that of\n      a NAT which passes it on.",
        value="IP",
        unset="that of the interface",
    ),
    Flag(
        "host-id",
        "Interface",
        host_id,
        "What tells this host from another with the same public IP.",
        value="TEXT",
        unset="made from /etc/machine-id",
    ),
    Flag(
        "etcd-endpoints",
        "etcd",
        endpoints,
        "Where etcd answers; any of them will do.",
        value="URL[,URL]",
        default="http://127.0.0.1:4001,http://127.0.0.1:2379",
    ),
    Flag(
        "etcd-prefix",
        "etcd",
        required,
        "The key above the config and the leases.",
        value="KEY",
        default="/coreos.com/network",
    ),
    Flag(
        "networks",
        "etcd",
        networks,
        "Several networks, each with a config of its own at KEY/NAME/config, and\n"
        "      a subnet, device and file of its own; none reaches another one.",
        value="NAME[,NAME]",
        unset="one network, with its config at KEY/config",
    ),
    Flag("etcd-cafile", "etcd", optional, "The CA that etcd's certificate is checked against.", value="FILE"),
    Flag("etcd-certfile", "etcd", optional, "The certificate we show to etcd; needs -etcd-keyfile.", value="FILE"),
    Flag("etcd-keyfile", "etcd", optional, "The key of that certificate.", value="FILE"),
    Flag("etcd-username", "etcd", optional, "Our user in etcd; needs -etcd-password.", value="NAME"),
    Flag(
        "etcd-password",
        "etcd",
        optional,
        "Its password. Prefer the variable: everybody on this host can see flags.",
        value="TEXT",
    ),
    Flag(
        "subnet-lease-ttl",
        "Lease",
        duration,
        "How long a host keeps its subnet without being heard of.",
        value="DURATION",
        default="24h",
    ),
    Flag(
        "subnet-lease-renew-margin",
        "Lease",
        minutes,
        "How many minutes before it ends a lease is renewed; half-way through\n"
        "      a lease that is no longer than that.",
        value="MINUTES",
        default="60",
    ),
    Flag(
        "subnet-file",
        "Files",
        path,
        "The file that tells Docker our subnet and MTU.",
        value="FILE",
        default="/run/flannel/subnet.env",
    ),
    Flag(
        "subnet-dir",
        "Files",
        path,
        "With -networks: where these files are, NAME.env for each network.",
        value="DIRECTORY",
        default="/run/flannel/networks",
    ),
    Flag(
        "ip-masq",
        "Packets",
        boolean,
        "Masquerade what containers send out of the network.",
        default="false",
    ),
    Flag(
        "iptables-forward-rules",
        "Packets",
        boolean,
        "Accept packets between containers of different hosts in iptables.",
        default="true",
    ),
    Flag(
        "iptables-resync",
        "Packets",
        seconds,
        "How often iptables rules and accept_local are checked and restored.",
        value="SECONDS",
        default="5",
    ),
    Flag(
        "source-check",
        "Packets",
        source_check,
        "Whose datagrams are accepted: those from a host's public IP; strict:\n"
        "      and only about its own subnet; off: anybody's, for odd NATs.",
        value="peer|strict|off",
        default="peer",
    ),
    Flag(
        "offload",
        "Packets",
        offload,
        "What the kernel may do for many packets at a time, to rule one out:\n"
        "      off, or some of tso,uso,merge-tcp,merge-udp,gso,gro.",
        value="auto|off|NAMES",
        default="auto",
    ),
    Flag(
        "cleanup",
        "Instead of running",
        boolean,
        "Remove what an earlier run has left on this host: device, routes,\n"
        "      iptables rules, subnet file; and end.",
        default="false",
        has_variable=False,
    ),
    Flag(
        "release",
        "Instead of running",
        boolean,
        "With -cleanup: give the lease back, too.",
        default="false",
        has_variable=False,
    ),
    Flag("v verbosity", "Log", level, "How much to log: 0 is normal, 1 more.", value="N", default="0"),
    InfoFlag("version", "Print the version.", version),
    InfoFlag("help", "Print this text; -h does, too.", usage),
)
BY_NAME = {flag.flag: flag for flag in FLAGS} | {"h": FLAGS[-1]}

COMMAND = click.Command(PROGRAM, params=list(FLAGS), add_help_option=False)


# Go's spellings.


def go_spelling(argv: Sequence[str]) -> Iterator[str]:
    """Every flag of ``argv`` as ``--name=value``.  Raises UsageError.

    Source: package flag of Go: one dash or two, the value after ``=`` or in the next word, a boolean's only after
    ``=``; the flags end at ``--`` or at the first word that is none.
    """
    words = iter(argv)
    before = ""
    for word in words:
        if word == "--":
            refuse_extra(next(words, None), before)
        elif word == "-" or not word.startswith("-"):
            refuse_extra(word, before)
        else:
            yield one_flag(word, words)
        before = word


def one_flag(word: str, following: Iterator[str]) -> str:
    """The flag of ``word``, with its value from there or from the word that follows."""
    name, equals, text = word.removeprefix("-").removeprefix("-").partition("=")
    if not name or name.startswith("-"):
        raise UsageError(f"bad flag {word!r}: write -name=value or --name=value")
    flag = BY_NAME.get(name) or refuse_unknown(name)
    if not equals:
        text = value_of(flag, following)
    return f"--{flag.flag}={text}"


def value_of(flag: Flag, following: Iterator[str]) -> str:
    """The value of a flag that was written without ``=``."""
    if not flag.takes_value:
        return "true"
    text = next(following, None)
    if text is None:
        raise UsageError(f"-{flag.flag} needs a value: {flag.synopsis}")
    return text


def refuse_unknown(name: str) -> NoReturn:
    """Says what to write in place of a flag that does not exist."""
    if name in UNSUPPORTED:
        raise UsageError(f"-{name} is not supported: {UNSUPPORTED[name]}")
    from difflib import get_close_matches

    close = get_close_matches(name, BY_NAME, n=1)
    raise UsageError(f"unknown flag -{name}: " + (f"did you mean -{close[0]}?" if close else "-help lists all flags"))


def refuse_extra(word: str | None, before: str) -> None:
    """Says what is wrong with a word that is neither flag nor value, if there is one."""
    if word is None:
        return
    flag = BY_NAME.get(before.lstrip("-"))
    if flag and not flag.takes_value:
        raise UsageError(f"extra argument {word!r}: the value of a boolean follows '=', as in -{flag.flag}=true")
    raise UsageError(f"extra argument {word!r}: only flags are expected, -help lists them")


# From words to options.


def parse(argv: Sequence[str]) -> Options:
    """What flags and variables ask for.  Raises UsageError.  -help and -version end the process."""
    context = COMMAND.make_context(PROGRAM, list(go_spelling(argv)))
    refuse_left_out_variables()
    refuse_half_pairs(context)
    check_combinations(context)
    return Options(**context.params)


def refuse_left_out_variables() -> None:
    """A variable of a flag that was left out would be obeyed by the original, so it is not passed over in silence."""
    for name, instead in UNSUPPORTED.items():
        if os.environ.get(variable(name)):
            raise UsageError(f"{variable(name)} is not supported: {instead}")


def refuse_half_pairs(context: click.Context) -> None:
    """A key needs its certificate, a user a password, and the other way round."""
    by_field = {flag.name: flag for flag in FLAGS}
    for pair in PAIRS:
        given = [by_field[field] for field in pair if context.params[field]]
        missing = [by_field[field] for field in pair if not context.params[field]]
        if given and missing:
            raise UsageError(f"{given[0].spelled(context)} needs -{missing[0].flag}, too")


def check_combinations(context: click.Context) -> None:
    """What only -cleanup does is not asked of a daemon; a margin that never applies is a mistake."""
    given = context.params
    if given["release"] and not given["cleanup"]:
        raise UsageError("-release needs -cleanup, too: a running host needs its lease")
    margin, lease_ttl = given["subnet_lease_renew_margin"], given["subnet_lease_ttl"]
    source = context.get_parameter_source("subnet_lease_renew_margin")
    if margin >= lease_ttl and source is not ParameterSource.DEFAULT:
        raise UsageError(
            f"-subnet-lease-renew-margin={margin // 60} is not shorter than -subnet-lease-ttl, which is {lease_ttl} s"
        )


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The console script: parses, runs the daemon, and ends the process."""
    try:
        options = parse(sys.argv[1:] if argv is None else argv)
        # both bring etcd and netlink along, which -help and a wrong flag need not wait for
        if options.cleanup:
            from flannelpy.commands.cleanup import run
        else:
            from flannelpy.commands.daemon import run
        sys.exit(run(options))
    except FlannelError as error:
        click.echo(f"{PROGRAM}: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
