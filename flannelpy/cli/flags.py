"""The table of flags, and the help text made of it.

click reads the variables, defaults and values; ``go_flags`` gives it every flag as ``--name=value``.
Counterpart: the flag set of flanneld v0.5.5, names and defaults; -etcd-username and -etcd-password are those of v0.13,
-iface-regex, -iface-can-reach and the repeated -iface those of v0.20.2.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from flannelpy import __version__
from flannelpy.cli import values
from flannelpy.cli.output import end_with
from flannelpy.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

PROGRAM = "flannelpy"

ABOUT = """\
Usage: flannelpy [flags]
       flannelpy status | check | log-level N | cleanup | copy-to-v3 [flags]

Leases a subnet to this host, from the network that is configured in etcd, and
connects its containers to those of other hosts by UDP, VXLAN or plain routes.

Write a flag as -name=value, -name value, --name=value or --name value, and a
boolean as -name, -name=true or -name=false. A flag wins over its variable, and
an empty variable counts as unset.
"""

EXAMPLES = """\
Examples:
  Name the interface; etcd runs on this host:
    flannelpy -iface=eth1

  Use several etcd endpoints over TLS:
    flannelpy -iface=eth1 \\
      -etcd-endpoints=https://10.0.0.1:2379,https://10.0.0.2:2379 \\
      -etcd-cafile=/etc/etcd/ca.pem \\
      -etcd-certfile=/etc/etcd/host.pem -etcd-keyfile=/etc/etcd/host-key.pem

  Set variables for systemd in /etc/default/flannelpy:
    FLANNELD_IFACE=eth1
    FLANNELD_ETCD_ENDPOINTS=http://10.0.0.1:2379
"""


def variable(name: str) -> str:
    """Return the name of a flag's variable: for etcd-prefix, FLANNELD_ETCD_PREFIX."""
    return "FLANNELD_" + name.upper().replace("-", "_")


def _invalid_byte(text: str) -> int | None:
    """Return the first byte of ``text`` that is not UTF-8; None if all are.

    Python reads such a byte of argv or of a variable as a surrogate (PEP 383), which no request to etcd can have.
    """
    found = re.search("[\udc80-\udcff]", text)
    return ord(found[0]) - 0xDC00 if found else None


class Flag(click.Option):
    """A flag: its section and description in -help, its variable, and ``read``, which makes a value of its text.

    ``declared``: the flag's name, and after a space the field of ``Options`` if it has another name.  ``unset``: what
    -help gives as the default of a flag without one.
    """

    def __init__(
        self,
        declared: str,
        section: str,
        read: Callable[[str], object],
        description: str,
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
        self.manual = f"  {heading}\n      {description}\n      Default: {default or unset}.\n"
        super().__init__(
            [f"--{self.flag}", field or self.flag.replace("-", "_")],
            envvar=variable(self.flag) if has_variable else None,
            default=None if is_repeatable else default,
            multiple=is_repeatable,
            callback=Flag.checked,
        )

    @property
    def takes_value(self) -> bool:
        """Return whether the flag's value may be the next word of the command line: for all flags but booleans."""
        return self.read is not values.boolean

    def spelled(self, context: click.Context) -> str:
        """Return what the user wrote: the flag or its variable."""
        assert self.name is not None
        by_variable = context.get_parameter_source(self.name) is ParameterSource.ENVIRONMENT
        return variable(self.flag) if by_variable else f"-{self.flag}"

    @staticmethod
    def checked(context: click.Context, flag: click.Parameter, text: str | tuple[str, ...]) -> object:
        """Return the value of a flag, or the tuple of values of a repeatable flag.

        Raises UsageError, whose text names the flag or the variable.
        """
        assert isinstance(flag, Flag)
        if isinstance(text, str):
            return flag.parsed(context, text)
        found = [flag.parsed(context, one) for one in text]
        return tuple(value for value in found if value is not None)

    def parsed(self, context: click.Context, text: str) -> object:
        """Return the value of one text.  Raises UsageError."""
        if byte := _invalid_byte(text):
            raise UsageError(f"bad value for {self.spelled(context)}: must be UTF-8, which byte {byte:#04x} is not")
        try:
            return self.read(text)
        except ValueError as error:
            raise UsageError(f"bad value {text!r} for {self.spelled(context)}: {error}") from None
        except UsageError as error:  # names the flag, and withholds a value with a password in it
            raise UsageError(f"{self.spelled(context)}: {str(error).removeprefix(f'-{self.flag}: ')}") from None


class InfoFlag(Flag):
    """A flag that prints to stderr and exits before any other flag is read.  It has no variable."""

    def __init__(self, flag: str, description: str, answer: Callable[[], str]) -> None:
        super().__init__(flag, "About", values.boolean, description, default="false")
        self.manual = f"  {self.synopsis}\n      {description}\n"
        self.answer = answer
        self.is_eager, self.expose_value = True, False
        self.envvar, self.callback = None, InfoFlag.given

    @staticmethod
    def given(context: click.Context, flag: click.Parameter, text: str) -> None:
        """Print the answer and exit with code 0, unless the flag is false."""
        assert isinstance(flag, InfoFlag)
        if Flag.checked(context, flag, text):
            end_with(flag.answer(), 0)


def version() -> str:
    """Return the version, and whether the packet code is compiled."""
    from flannelpy.packet import build

    return f"{PROGRAM} {__version__} ({build()})"


def usage() -> str:
    """Return the help text: all flags by section, at most 80 columns wide."""
    sections = [
        f"{name}:\n" + "".join(flag.manual for flag in flags)
        for name, flags in groupby(FLAGS, lambda flag: flag.section)
    ]
    return "\n".join([ABOUT, *sections, EXAMPLES.rstrip()])


FLAGS = (
    Flag(
        "iface",
        "Interface",
        values.optional,
        "The interface by which the other hosts reach this host. Repeat the flag\n"
        "      to name several: flannelpy uses the first that exists. The variable\n"
        "      separates them by spaces.",
        value="NAME|IP",
        unset="that of the public IP or of the default route",
        is_repeatable=True,
    ),
    Flag(
        "iface-regex",
        "Interface",
        values.regex,
        "A regular expression that matches the interface's address, or else its\n"
        "      name; tried after -iface and repeatable in the same way.",
        value="REGEX",
        is_repeatable=True,
    ),
    Flag(
        "iface-can-reach",
        "Interface",
        values.address,
        "An address: flannelpy uses the interface by which the kernel would send\n      to it. Tried last.",
        value="IP",
    ),
    Flag(
        "public-ip",
        "Interface",
        values.address,
        "The address that the other hosts send to: an address of this host, or\n"
        "      of a NAT that forwards to this host.",
        value="IP",
        unset="that of the interface",
    ),
    Flag(
        "host-id",
        "Interface",
        values.host_id,
        "The ID that distinguishes this host from a host with the same public IP.",
        value="TEXT",
        unset="derived from /etc/machine-id",
    ),
    Flag(
        "etcd-endpoints",
        "etcd",
        values.endpoints,
        "The endpoints of etcd; flannelpy uses any that answers.",
        value="URL[,URL]",
        default="http://127.0.0.1:4001,http://127.0.0.1:2379",
    ),
    Flag(
        "etcd-prefix",
        "etcd",
        values.required,
        "The key above the config and the leases.",
        value="KEY",
        default="/coreos.com/network",
    ),
    Flag(
        "etcd-api",
        "etcd",
        values.etcd_api,
        "The version of etcd's API by which config and leases are kept. auto: 2\n"
        "      if that store has a config, otherwise 3.",
        value="auto|2|3",
        default="auto",
    ),
    Flag(
        "networks",
        "etcd",
        values.networks,
        "Several networks that cannot reach each other. Each has its own config,\n"
        "      at KEY/NAME/config, and its own subnet, device and subnet file.",
        value="NAME[,NAME]",
        unset="one network, with its config at KEY/config",
    ),
    Flag("etcd-cafile", "etcd", values.optional, "The CA certificate that must have signed etcd's.", value="FILE"),
    Flag(
        "etcd-certfile", "etcd", values.optional, "The client certificate for etcd; needs -etcd-keyfile.", value="FILE"
    ),
    Flag("etcd-keyfile", "etcd", values.optional, "The private key of that certificate.", value="FILE"),
    Flag("etcd-username", "etcd", values.optional, "The user name for etcd; needs -etcd-password.", value="NAME"),
    Flag(
        "etcd-password",
        "etcd",
        values.optional,
        "The password of that user. Prefer the variable: every user of this host\n      can see flags.",
        value="TEXT",
    ),
    Flag(
        "subnet-lease-ttl",
        "Lease",
        values.lease_ttl,
        "How long a lease lasts unless it is renewed.",
        value="DURATION",
        default="24h",
    ),
    Flag(
        "subnet-lease-renew-margin",
        "Lease",
        values.minutes,
        "How long before its end a lease is renewed. A lease that is not longer\n"
        "      than that is renewed half-way through.",
        value="MINUTES",
        default="60",
    ),
    Flag(
        "subnet-file",
        "Files",
        values.path,
        "The file with this host's subnet and MTU, for Docker.",
        value="FILE",
        default="/run/flannel/subnet.env",
    ),
    Flag(
        "subnet-dir",
        "Files",
        values.path,
        "With -networks: the directory of the subnet files, NAME.env each.",
        value="DIRECTORY",
        default="/run/flannel/networks",
    ),
    Flag(
        "ip-masq",
        "Packets",
        values.boolean,
        "Masquerade packets from containers to outside the network.",
        default="false",
    ),
    Flag(
        "iptables-forward-rules",
        "Packets",
        values.boolean,
        "Accept packets between containers of different hosts in iptables.",
        default="true",
    ),
    Flag(
        "iptables-resync",
        "Packets",
        values.resync_seconds,
        "The seconds between two checks of iptables rules and accept_local, which\n      flannelpy then restores.",
        value="SECONDS",
        default="5",
    ),
    Flag(
        "source-check",
        "Packets",
        values.source_check,
        "Which datagrams the udp backend accepts. peer: those from the public IP\n"
        "      of a lease; strict: also, the inner packet must come from the subnet\n"
        "      of that lease; off: all, for NATs that change addresses.",
        value="peer|strict|off",
        default="peer",
    ),
    Flag(
        "offload",
        "Packets",
        values.offload,
        "Which offloads the udp backend may use: all that the kernel has, none,\n"
        "      or those named, of tso,uso,merge-tcp,merge-udp,gso,gro.",
        value="auto|off|NAMES",
        default="auto",
    ),
    Flag(
        "datapath",
        "Packets",
        values.datapath,
        "What carries the packets of the udp backend. loop: this process; auto:\n"
        "      eBPF in the kernel to and from hosts that have it too, where nothing\n"
        "      forbids it, and the loop for all else; kernel: the same, but flannelpy\n"
        "      does not start without it.",
        value="loop|auto|kernel",
        default="loop",
    ),
    Flag(
        "healthz-port",
        "HTTP",
        values.port,
        "The TCP port of /healthz, /livez and /readyz. Also of /metrics and\n"
        "      /status.json, for clients on this host. 0: no HTTP.",
        value="PORT",
        default="0",
    ),
    Flag(
        "healthz-ip",
        "HTTP",
        values.listen_address,
        "The address at which they are served, beside loopback.",
        value="IP",
        default="0.0.0.0",  # noqa: S104 - the original's
    ),
    Flag(
        "metrics-ip",
        "HTTP",
        values.metrics_address,
        "An address of this host at which every client may read /metrics and\n"
        "      /status.json, too. Repeat the flag for several. The variable separates\n"
        "      them by spaces.",
        value="IP",
        is_repeatable=True,
    ),
    Flag(
        "metrics-peers",
        "HTTP",
        values.boolean,
        "Whether /metrics has series for each peer, beside the totals.",
        default="false",
    ),
    Flag(
        "cleanup",
        "Instead of running",
        values.boolean,
        "Remove what an earlier run left on this host (device, routes, iptables\n      rules, subnet file), then exit.",
        default="false",
        has_variable=False,
    ),
    Flag(
        "release",
        "Instead of running",
        values.boolean,
        "With -cleanup: also release the lease, if it is this host's.",
        default="false",
        has_variable=False,
    ),
    Flag("v verbosity", "Log", values.level, "How much to log: 0 is normal, 1 adds details.", value="N", default="0"),
    InfoFlag("version", "Print the version.", version),
    InfoFlag("help", "Print this text; -h does the same.", usage),
)
BY_NAME = {flag.flag: flag for flag in FLAGS} | {"h": FLAGS[-1]}

COMMAND = click.Command(PROGRAM, params=list(FLAGS), add_help_option=False)
