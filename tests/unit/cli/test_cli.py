"""The command line, in this process: the values of flags and variables, and the errors for wrong ones."""

from __future__ import annotations

import gc
import os
import re
import sys
from ipaddress import IPv4Address
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from flannelpy import __version__, cli, packet
from flannelpy.cli import copy_to_v3, flags
from flannelpy.cli.go_flags import UNSUPPORTED
from flannelpy.datapath.source_check import SourceCheck
from flannelpy.errors import HostError, LeaseLost, UsageError
from flannelpy.options import Datapath, EtcdApi

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flannelpy.options import Options

DEFAULTS = {
    "iface": (),
    "iface_regex": (),
    "iface_can_reach": None,
    "public_ip": None,
    "host_id": None,
    "etcd_endpoints": ("http://127.0.0.1:4001", "http://127.0.0.1:2379"),
    "etcd_prefix": "/coreos.com/network",
    "etcd_api": EtcdApi.AUTO,
    "etcd_keyfile": None,
    "etcd_certfile": None,
    "etcd_cafile": None,
    "etcd_username": None,
    "etcd_password": None,
    "subnet_lease_ttl": 24 * 3600,
    "subnet_lease_renew_margin": 3600,
    "subnet_file": Path("/run/flannel/subnet.env"),
    "ip_masq": False,
    "iptables_forward_rules": True,
    "iptables_resync": 5,
    "source_check": SourceCheck.PEER,
    "offload": None,
    "datapath": Datapath.LOOP,
    "healthz_ip": IPv4Address("0.0.0.0"),
    "healthz_port": 0,
    "metrics_ip": (),
    "metrics_peers": False,
    "cleanup": False,
    "release": False,
    "verbosity": 0,
}

# The text of a good value for each flag, and the field and value that it becomes.
GOOD = {
    "iface": ("eth1", "iface", ("eth1",)),
    "iface-regex": ("^eth[01]$", "iface_regex", (re.compile("^eth[01]$", re.ASCII),)),
    "iface-can-reach": ("172.17.8.1", "iface_can_reach", IPv4Address("172.17.8.1")),
    "public-ip": ("172.17.8.101", "public_ip", IPv4Address("172.17.8.101")),
    "host-id": ("rack-3:node.7_b", "host_id", "rack-3:node.7_b"),
    "etcd-endpoints": ("http://a:1,https://b:2", "etcd_endpoints", ("http://a:1", "https://b:2")),
    "etcd-prefix": ("/other", "etcd_prefix", "/other"),
    "etcd-api": ("3", "etcd_api", EtcdApi.V3),
    "etcd-cafile": ("ca.pem", "etcd_cafile", "ca.pem"),
    "subnet-lease-ttl": ("1h30m", "subnet_lease_ttl", 5400),
    "subnet-lease-renew-margin": ("30", "subnet_lease_renew_margin", 1800),
    "subnet-file": ("/tmp/subnet.env", "subnet_file", Path("/tmp/subnet.env")),
    "ip-masq": ("true", "ip_masq", True),
    "iptables-forward-rules": ("false", "iptables_forward_rules", False),
    "iptables-resync": ("60", "iptables_resync", 60),
    "source-check": ("strict", "source_check", SourceCheck.STRICT),
    "offload": ("tso,gso", "offload", frozenset({"tso", "gso"})),
    "datapath": ("auto", "datapath", Datapath.AUTO),
    "healthz-ip": ("127.0.0.1", "healthz_ip", IPv4Address("127.0.0.1")),
    "healthz-port": ("8471", "healthz_port", 8471),
    "v": ("3", "verbosity", 3),
}

TRUE = ("1", "t", "T", "TRUE", "true", "True")
FALSE = ("0", "f", "F", "FALSE", "false", "False")


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("FLANNELD_"):
            monkeypatch.delenv(name)


def differing(options: Options) -> dict[str, object]:
    """The fields that differ from the defaults."""
    fields = {name: getattr(options, name) for name in DEFAULTS}
    return {name: value for name, value in fields.items() if value != DEFAULTS[name]}


def refusal(argv: list[str]) -> str:
    with pytest.raises(UsageError) as caught:
        cli.parse(argv)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_defaults_are_those_of_flanneld() -> None:
    assert differing(cli.parse([])) == {}


@pytest.mark.parametrize("flag", GOOD)
def test_every_spelling(flag: str) -> None:
    text, field, value = GOOD[flag]
    assert differing(cli.parse([f"-{flag}={text}"])) == {field: value}
    assert differing(cli.parse([f"--{flag}={text}"])) == {field: value}
    if flag not in ("ip-masq", "iptables-forward-rules"):  # a boolean's value comes only after '='
        assert differing(cli.parse([f"-{flag}", text])) == {field: value}
        assert differing(cli.parse([f"--{flag}", text])) == {field: value}


@pytest.mark.parametrize("flag", GOOD)
def test_variable(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, field, value = GOOD[flag]
    monkeypatch.setenv(flags.variable(flag), text)
    assert differing(cli.parse([])) == {field: value}


@pytest.mark.parametrize("flag", GOOD)
def test_empty_variable_is_unset(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(flags.variable(flag), "")
    assert differing(cli.parse([])) == {}


@pytest.mark.parametrize(
    ("flag", "network", "ready"),
    [
        ("-subnet-file=/run/flannel/subnet.env", "", "/run/flannel/ready"),
        ("-subnet-file=/run/ready", "", "/run/ready.ready"),
        ("-subnet-dir=/run/flannel/networks", "blue", "/run/flannel/networks/blue.env.ready"),
        ("-subnet-dir=/run/flannel/networks", "subnet", "/run/flannel/networks/subnet.env.ready"),
    ],
)
def test_each_subnet_file_has_a_ready_file_of_its_own(flag: str, network: str, ready: str) -> None:
    assert cli.parse([flag]).ready_file_of(network) == Path(ready)


@pytest.mark.parametrize(
    ("argv", "socket"),
    [
        ([], "/run/flannel/control.sock"),
        (["-subnet-file=/tmp/subnet.env"], "/tmp/control.sock"),
        (["-subnet-file=/tmp/blue.env"], "/tmp/blue.env.sock"),
        (["-networks=blue,green"], "/run/flannel/networks/control.sock"),
        (["-networks=blue", "-subnet-dir=/tmp/nets"], "/tmp/nets/control.sock"),
    ],
)
def test_each_daemon_has_a_control_socket_of_its_own(argv: list[str], socket: str) -> None:
    assert cli.parse(argv).control_socket == Path(socket)


def test_flag_wins_over_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLANNELD_IFACE", "eth0")
    monkeypatch.setenv("FLANNELD_V", "not looked at")
    assert differing(cli.parse(["-iface=eth1", "-v=1"])) == {"iface": ("eth1",), "verbosity": 1}


def test_empty_flag_wins_over_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit's -iface=${SOMETHING} with nothing in it is a flag that was given."""
    monkeypatch.setenv("FLANNELD_IFACE", "eth0")
    assert differing(cli.parse(["-iface="])) == {}


def test_variable_names() -> None:
    assert {flag.flag: flag.envvar for flag in flags.FLAGS} == {
        "iface": "FLANNELD_IFACE",
        "iface-regex": "FLANNELD_IFACE_REGEX",
        "iface-can-reach": "FLANNELD_IFACE_CAN_REACH",
        "public-ip": "FLANNELD_PUBLIC_IP",
        "host-id": "FLANNELD_HOST_ID",
        "etcd-endpoints": "FLANNELD_ETCD_ENDPOINTS",
        "etcd-prefix": "FLANNELD_ETCD_PREFIX",
        "etcd-api": "FLANNELD_ETCD_API",
        "networks": "FLANNELD_NETWORKS",
        "etcd-cafile": "FLANNELD_ETCD_CAFILE",
        "etcd-certfile": "FLANNELD_ETCD_CERTFILE",
        "etcd-keyfile": "FLANNELD_ETCD_KEYFILE",
        "etcd-username": "FLANNELD_ETCD_USERNAME",
        "etcd-password": "FLANNELD_ETCD_PASSWORD",
        "subnet-lease-ttl": "FLANNELD_SUBNET_LEASE_TTL",
        "subnet-lease-renew-margin": "FLANNELD_SUBNET_LEASE_RENEW_MARGIN",
        "subnet-file": "FLANNELD_SUBNET_FILE",
        "subnet-dir": "FLANNELD_SUBNET_DIR",
        "ip-masq": "FLANNELD_IP_MASQ",
        "iptables-forward-rules": "FLANNELD_IPTABLES_FORWARD_RULES",
        "iptables-resync": "FLANNELD_IPTABLES_RESYNC",
        "source-check": "FLANNELD_SOURCE_CHECK",
        "offload": "FLANNELD_OFFLOAD",
        "datapath": "FLANNELD_DATAPATH",
        "healthz-port": "FLANNELD_HEALTHZ_PORT",
        "healthz-ip": "FLANNELD_HEALTHZ_IP",
        "metrics-ip": "FLANNELD_METRICS_IP",
        "metrics-peers": "FLANNELD_METRICS_PEERS",
        "cleanup": None,
        "release": None,
        "v": "FLANNELD_V",
        "version": None,
        "help": None,
    }


@pytest.mark.parametrize(("text", "value"), [(text, True) for text in TRUE] + [(text, False) for text in FALSE])
def test_boolean(text: str, value: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.parse([f"-ip-masq={text}"]).ip_masq is value
    assert cli.parse([f"--ip-masq={text}"]).ip_masq is value
    monkeypatch.setenv("FLANNELD_IP_MASQ", text)
    assert cli.parse([]).ip_masq is value


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["-ip-masq"], {"ip_masq": True}),
        (["--ip-masq", "-v", "1"], {"ip_masq": True, "verbosity": 1}),
        (["-ip-masq", "-ip-masq=false"], {}),
        (["-iface=eth0", "--iface", "eth1"], {"iface": ("eth0", "eth1")}),
        (["-iface", "-v"], {"iface": ("-v",)}),
        (["-iface", "--"], {"iface": ("--",)}),
        (["-iface=a=b"], {"iface": ("a=b",)}),
        (["-iface=--v=1"], {"iface": ("--v=1",)}),
        (["-iface="], {}),
        (["-iface=", "-iface=eth1", "-iface="], {"iface": ("eth1",)}),
        (["-iface=eth0 eth1"], {"iface": ("eth0 eth1",)}),
        (
            ["-iface-regex=^10\\.", "-iface=eth9", "-iface-regex", "wlan|eth{1,2}"],
            {
                "iface": ("eth9",),
                "iface_regex": (re.compile("^10\\.", re.ASCII), re.compile("wlan|eth{1,2}", re.ASCII)),
            },
        ),
        (["-iface-can-reach=", "-iface-regex="], {}),
        (["-public-ip="], {}),
        (["-v=007"], {"verbosity": 7}),
        (["-v=1", "--"], {"verbosity": 1}),
        (["--"], {}),
        (["-help=false", "--version=0"], {}),
        (["-etcd-endpoints=http://a:1, http://b:2"], {"etcd_endpoints": ("http://a:1", "http://b:2")}),
        (["-offload=auto"], {}),
        (["-offload", "off"], {"offload": frozenset()}),
        (["-offload=tso, uso ,gro"], {"offload": frozenset({"tso", "uso", "gro"})}),
        (
            ["-offload=tso,uso,merge-tcp,merge-udp,gso,gro"],
            {"offload": frozenset({"tso", "uso", "merge-tcp", "merge-udp", "gso", "gro"})},
        ),
        (["-etcd-keyfile=k", "-etcd-certfile=c"], {"etcd_keyfile": "k", "etcd_certfile": "c"}),
        (["-etcd-username=u", "-etcd-password=p"], {"etcd_username": "u", "etcd_password": "p"}),
        (["-cleanup", "-release"], {"cleanup": True, "release": True}),
        (
            ["-healthz-port=8471", "-metrics-ip=10.0.0.1", "-metrics-ip", "0.0.0.0", "-metrics-ip=", "-metrics-peers"],
            {
                "healthz_port": 8471,
                "metrics_ip": (IPv4Address("10.0.0.1"), IPv4Address("0.0.0.0")),
                "metrics_peers": True,
            },
        ),
        (["-metrics-ip=", "-metrics-peers=false"], {}),
        (["-subnet-lease-ttl=10s"], {"subnet_lease_ttl": 10}),
        (
            ["-subnet-lease-ttl=48h", "-subnet-lease-renew-margin=2879"],
            {
                "subnet_lease_ttl": 48 * 3600,
                "subnet_lease_renew_margin": 2879 * 60,
            },
        ),
    ],
)
def test_as_go_reads_it(argv: list[str], expected: dict[str, object]) -> None:
    assert differing(cli.parse(argv)) == expected


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-ifcae=eth1"], "unknown flag -ifcae: did you mean -iface?"),
        (["--etcd-endpoint", "http://a:1"], "unknown flag -etcd-endpoint: did you mean -etcd-endpoints?"),
        (["-ip_masq"], "unknown flag -ip_masq: did you mean -ip-masq?"),
        (["-zzz"], "unknown flag -zzz: -help lists all flags"),
        (["-i", "eth1"], "unknown flag -i: -help lists all flags"),
        (["---v=1"], "bad flag '---v=1': write -name=value or --name=value"),
        (["-=1"], "bad flag '-=1': write -name=value or --name=value"),
        (["--=1"], "bad flag '--=1': write -name=value or --name=value"),
        (["-iface"], "-iface needs a value: -iface=NAME|IP"),
        (["-v=1", "--v"], "-v needs a value: -v=N"),
        (["eth1"], "extra argument 'eth1': only flags are expected, -help lists them"),
        (["eth1", "-zzz"], "extra argument 'eth1': only flags are expected, -help lists them"),
        (["-"], "extra argument '-': only flags are expected, -help lists them"),
        ([""], "extra argument '': only flags are expected, -help lists them"),
        (["--", "-v=1"], "extra argument '-v=1': only flags are expected, -help lists them"),
        (["-v=1", "a\nb"], "extra argument 'a\\nb': only flags are expected, -help lists them"),
        (
            ["-ip-masq", "true"],
            "extra argument 'true': the value of a boolean follows '=', as in -ip-masq=true",
        ),
        *(
            (
                [f"-iptables-resync={text}"],
                f"bad value {text!r} for -iptables-resync: must be a whole number of seconds, from 1 to 3600",
            )
            for text in ("0", "3601", "100000", "", "-1", "5s", "1.5", "٣", "1e3", " 5")
        ),
        (["-ip-masq=yes"], "bad value 'yes' for -ip-masq: must be true or false"),
        (["-ip-masq="], "bad value '' for -ip-masq: must be true or false"),
        (["-help=yes"], "bad value 'yes' for -help: must be true or false"),
        *(
            ([f"-v={text}"], f"bad value {text!r} for -v: must be a whole number from 0 to 2147483647")
            for text in ("", "x", "-1", "1.0", " 1", "1_0", "²", "٣")
        ),
        *(
            (
                [f"-public-ip={text}"],
                f"bad value {text!r} for -public-ip: must be an IPv4 address, such as 172.17.8.101",
            )
            for text in ("1.2.3", "eth1", "::1", "1.2.3.4/24", "01.2.3.4")
        ),
        *(
            (
                [f"-public-ip={text}"],
                f"bad value {text!r} for -public-ip: must be the address of a host, such as 172.17.8.101; this one is"
                f" in {block}",
            )
            for text, block in (
                ("0.0.0.0", "0.0.0.0/8 (this host itself)"),
                ("0.1.2.3", "0.0.0.0/8 (this host itself)"),
                ("127.0.0.1", "127.0.0.0/8 (loopback)"),
                ("127.255.255.254", "127.0.0.0/8 (loopback)"),
                ("224.0.0.1", "224.0.0.0/4 (multicast)"),
                ("239.255.255.255", "224.0.0.0/4 (multicast)"),
                ("240.0.0.1", "240.0.0.0/4 (reserved and broadcast)"),
                ("255.255.255.255", "240.0.0.0/4 (reserved and broadcast)"),
            )
        ),
        *(
            (
                [f"-healthz-port={text}"],
                f"bad value {text!r} for -healthz-port: must be a port from 1 to 65535, or 0 for none",
            )
            for text in ("", "65536", "-1", "http", "80.0", "٣", "1" * 10)
        ),
        *(
            (
                [f"-{flag}={text}"],
                f"bad value {text!r} for -{flag}: must be an IPv4 address of this host, such as 172.17.8.101, or"
                " 0.0.0.0 for all",
            )
            for flag in ("healthz-ip", "metrics-ip")
            for text in ("eth1", "::", "10.0.0.0/8", "localhost", "224.0.0.1", "255.255.255.255", "0.0.0.1")
        ),
        (["-metrics-ip=10.0.0.1"], "-metrics-ip needs -healthz-port, the port of /metrics"),
        (["-metrics-peers", "-healthz-port=0"], "-metrics-peers needs -healthz-port, the port of /metrics"),
        *(
            (
                [f"-offload={text}"],
                f"-offload: {text!r} is neither auto nor off nor some of tso,uso,merge-tcp,merge-udp,gso,gro",
            )
            for text in ("", "on", "TSO", "tso,", "tso gso", "auto,tso", "off,tso")
        ),
        *(
            (
                [f"-subnet-lease-ttl={text}"],
                f"bad value {text!r} for -subnet-lease-ttl: "
                "must be a duration such as 24h, 90m or 1h30m, from 5s to 87600h",
            )
            for text in ("", "0", "86400", "4s", "1.5h", "-24h", "24 h", "30m1h", "1d", "87601h", "²h")
        ),
        *(
            (
                [f"-subnet-lease-renew-margin={text}"],
                f"bad value {text!r} for -subnet-lease-renew-margin: must be a whole number of minutes, from 1 up",
            )
            for text in ("", "0", "1h", "-1", "1.5", "٣")
        ),
        (
            ["-subnet-lease-ttl=30m", "-subnet-lease-renew-margin=30"],
            "-subnet-lease-renew-margin=30 is not shorter than -subnet-lease-ttl, which is 1800 s",
        ),
        *(
            ([f"-iface-regex={text}"], f"bad value {text!r} for -iface-regex: must be a regular expression: {cause}")
            for text, cause in (
                ("eth[", "unterminated character set at position 3"),
                ("*", "nothing to repeat at position 0"),
                ("(?U)eth", "unknown extension ?U at position 1"),
                ("\\pL", "bad escape \\p at position 0"),
                ("[[:alpha:]]", "Possible nested set at position 1"),
                ("a{99999999999}", "the repetition number is too large"),
            )
        ),
        *(
            (
                [f"-iface-can-reach={text}"],
                f"bad value {text!r} for -iface-can-reach: must be an IPv4 address, such as 172.17.8.101",
            )
            for text in ("router.example", "::1", "10.0.0.0/8")
        ),
        (["-source-check=on"], "bad value 'on' for -source-check: must be peer, strict, off"),
        *(
            ([f"-datapath={text}"], f"bad value {text!r} for -datapath: must be loop, auto, kernel")
            for text in ("", "off", "Kernel", "ebpf")
        ),
        *(
            ([f"-etcd-api={text}"], f"bad value {text!r} for -etcd-api: must be auto, 2, 3")
            for text in ("", "v3", "4", "AUTO")
        ),
        *(
            ([f"-host-id={text}"], f"bad value {text!r} for -host-id: must be at most 64 letters, digits and ._:- only")
            for text in ("a b", 'a"', "ä", "a" * 65)
        ),
        *(
            (
                [f"-networks={text}"],
                f"bad value {text!r} for -networks: must be names of letters, digits and ._- with commas between them,"
                " such as blue,green",
            )
            for text in ("blue,", "..", "a/b", "-a", "blau grün", "a" * 65)
        ),
        (["-networks=blue, blue"], "bad value 'blue, blue' for -networks: must not name a network twice"),
        (["-release"], "-release needs -cleanup: a running host needs its lease"),
        (["-subnet-file="], "bad value '' for -subnet-file: must not be empty"),
        (["-subnet-file=/"], "bad value '/' for -subnet-file: must name a file or directory below /"),
        (["-etcd-prefix", ""], "bad value '' for -etcd-prefix: must not be empty"),
        (["-etcd-keyfile=k"], "-etcd-keyfile needs -etcd-certfile"),
        (["-etcd-certfile=c"], "-etcd-certfile needs -etcd-keyfile"),
        (["-etcd-username=u"], "-etcd-username needs -etcd-password"),
        (["-etcd-password=secret"], "-etcd-password needs -etcd-username"),
    ],
)
def test_refusals(argv: list[str], message: str) -> None:
    assert refusal(argv) == message


@pytest.mark.parametrize("text", ["", "127.0.0.1:2379", "etcd", "ftp://a:1", "http://", "http://a:x", "http://a:1,"])
def test_bad_endpoints(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of_flag = refusal([f"-etcd-endpoints={text}"])
    assert of_flag.startswith("-etcd-endpoints: ")
    assert "http://host:port" in of_flag
    if text:
        monkeypatch.setenv("FLANNELD_ETCD_ENDPOINTS", text)
        assert refusal([]) == of_flag.replace("-etcd-endpoints: ", "FLANNELD_ETCD_ENDPOINTS: ")


TEXT_FLAGS = [flag for flag in flags.FLAGS if flag.takes_value]


@pytest.mark.parametrize("flag", TEXT_FLAGS, ids=[flag.flag for flag in TEXT_FLAGS])
def test_bytes_that_are_not_utf_8_are_refused(flag: flags.Flag, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line has no other part of the value, which may be a password."""
    text = os.fsdecode(b"/secret\xff\xfe")
    message = "must be UTF-8, which byte 0xff is not"
    assert refusal([f"-{flag.flag}={text}"]) == f"bad value for -{flag.flag}: {message}"
    monkeypatch.setenv(flags.variable(flag.flag), text)
    assert refusal([]) == f"bad value for {flags.variable(flag.flag)}: {message}"


def test_password_in_an_endpoint_is_not_repeated() -> None:
    assert "secret" not in refusal(["-etcd-endpoints=http://user:secret@a:1"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("FLANNELD_V", "x", "bad value 'x' for FLANNELD_V: must be a whole number from 0 to 2147483647"),
        ("FLANNELD_IP_MASQ", "yes", "bad value 'yes' for FLANNELD_IP_MASQ: must be true or false"),
        (
            "FLANNELD_PUBLIC_IP",
            "eth1",
            "bad value 'eth1' for FLANNELD_PUBLIC_IP: must be an IPv4 address, such as 172.17.8.101",
        ),
        ("FLANNELD_ETCD_USERNAME", "u", "FLANNELD_ETCD_USERNAME needs -etcd-password"),
        ("FLANNELD_METRICS_IP", "10.0.0.1", "FLANNELD_METRICS_IP needs -healthz-port, the port of /metrics"),
        ("FLANNELD_ETCD_CERTFILE", "c", "FLANNELD_ETCD_CERTFILE needs -etcd-keyfile"),
    ],
)
def test_refused_variables(name: str, text: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, text)
    assert refusal([]) == message


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("FLANNELD_IFACE", "eth1", {"iface": ("eth1",)}),
        ("FLANNELD_IFACE", " eth9  eth1\t10.0.0.1 ", {"iface": ("eth9", "eth1", "10.0.0.1")}),
        ("FLANNELD_IFACE", "eth0,eth1", {"iface": ("eth0,eth1",)}),  # a comma may be part of a name
        ("FLANNELD_IFACE", " ", {}),
        (
            "FLANNELD_IFACE_REGEX",
            "^a{1,3} b$",
            {"iface_regex": (re.compile("^a{1,3}", re.ASCII), re.compile("b$", re.ASCII))},
        ),
    ],
)
def test_several_values_in_a_variable_have_spaces_between_them(
    name: str, text: str, expected: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, text)
    assert differing(cli.parse([])) == expected
    assert differing(cli.parse(["-iface=eth7", "-iface-regex="])) == {"iface": ("eth7",)}


def test_a_wrong_value_among_several_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLANNELD_IFACE_REGEX", "eth1 [ eth2")
    assert refusal([]).startswith("bad value '[' for FLANNELD_IFACE_REGEX: must be a regular expression: ")


def test_pair_of_flag_and_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLANNELD_ETCD_PASSWORD", "secret")
    options = cli.parse(["-etcd-username=u"])
    assert (options.etcd_username, options.etcd_password) == ("u", "secret")


@pytest.mark.parametrize("flag", UNSUPPORTED)
def test_flags_left_out_say_what_to_do(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    instead = UNSUPPORTED[flag]
    assert refusal([f"-{flag}=x"]) == f"-{flag} is not supported: {instead}"
    assert refusal([f"--{flag}", "x"]) == f"-{flag} is not supported: {instead}"
    monkeypatch.setenv(flags.variable(flag), "x")
    assert refusal([]) == f"{flags.variable(flag)} is not supported: {instead}"
    monkeypatch.setenv(flags.variable(flag), "")
    assert differing(cli.parse([])) == {}


def test_all_flags_of_flanneld_are_known() -> None:
    """Source: the flag sets of flanneld v0.5.5, v0.20.2 and later, and of glog."""
    original = """
        etcd-endpoints etcd-prefix etcd-keyfile etcd-certfile etcd-cafile subnet-file subnet-dir iface public-ip listen
        remote remote-keyfile remote-certfile remote-cafile ip-masq networks help version
        v vmodule log_backtrace_at logtostderr alsologtostderr stderrthreshold log_dir
        etcd-username etcd-password iface-regex iface-can-reach public-ipv6 subnet-lease-renew-margin
        iptables-resync iptables-forward-rules healthz-ip healthz-port kube-subnet-mgr kube-api-url kubeconfig-file
        kube-annotation-prefix net-config-path set-node-network-unavailable
        ip-masq-fully-random-disable ip-blackhole-route
    """
    assert set(original.split()) <= flags.BY_NAME.keys() | UNSUPPORTED.keys()
    assert not flags.BY_NAME.keys() & UNSUPPORTED.keys()


def test_password_is_not_shown() -> None:
    assert "secret" not in repr(cli.parse(["-etcd-username=u", "-etcd-password=secret"]))


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[Options], int]], None]]:
    """Puts a function in the daemon's place."""

    def stub(run: Callable[[Options], int]) -> None:
        module: Any = ModuleType("flannelpy.commands.daemon")
        module.run = run
        monkeypatch.setitem(sys.modules, "flannelpy.commands.daemon", module)

    yield stub
    gc.enable()  # main has disabled collections


def exit_of(argv: list[str] | None) -> object:
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    return caught.value.code


def never(options: Options) -> int:
    raise AssertionError("the daemon was started")


@pytest.mark.parametrize("code", [0, 1, 3])
def test_main_runs_the_daemon(
    code: int, daemon: Callable[[Callable[[Options], int]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Options] = []
    daemon(lambda options: seen.append(options) or code)  # type: ignore[func-returns-value]
    monkeypatch.setattr(sys, "argv", ["flannelpy", "-iface=eth1"])
    assert exit_of(None) == code
    assert [options.iface for options in seen] == [("eth1",)]


@pytest.mark.parametrize(("error", "code"), [(HostError, 1), (LeaseLost, 3), (UsageError, 2)])
def test_main_reports_what_the_daemon_raises(
    error: type[Exception],
    code: int,
    daemon: Callable[[Callable[[Options], int]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(options: Options) -> int:
        raise error("what is wrong")

    daemon(fail)
    assert exit_of([]) == code
    assert capsys.readouterr() == ("", "flannelpy: what is wrong\n")


def test_nothing_is_collected_while_the_daemon_is_imported(daemon: Callable[[Callable[[Options], int]], None]) -> None:
    daemon(lambda _: int(gc.isenabled()))
    assert exit_of([]) == 0


def test_main_on_ctrl_c(daemon: Callable[[Callable[[Options], int]], None], capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(options: Options) -> int:
        raise KeyboardInterrupt

    daemon(interrupted)
    assert exit_of([]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("argv", [["-zzz"], ["-v=x"], ["eth1"], ["-networks=a,a"], ["-help", "-zzz"]])
def test_main_on_a_usage_error(
    argv: list[str], daemon: Callable[[Callable[[Options], int]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    daemon(never)
    assert exit_of(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("flannelpy: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "argv", [["-help"], ["--help"], ["-h"], ["-help=true"], ["-v=x", "-help"], ["-help", "-version"]]
)
def test_help(
    argv: list[str],
    daemon: Callable[[Callable[[Options], int]], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It comes before any value is looked at, on stderr as the original's."""
    daemon(never)
    monkeypatch.setenv("FLANNELD_V", "x")
    assert exit_of(argv) == 0
    assert capsys.readouterr() == ("", flags.usage() + "\n")


def test_help_lists_all_flags() -> None:
    text = flags.usage()
    assert max(map(len, text.splitlines())) <= 80
    assert text.isascii()
    for flag in flags.FLAGS:
        assert f"\n  -{flag.flag}" in text
        assert flag.envvar is None or f" {flag.envvar}\n" in text
        assert isinstance(flag, flags.InfoFlag) or f"      Default: {flag.default or ''}" in text
    assert text.index("Interface:") < text.index("etcd:") < text.index("Log:") < text.index("Examples:")


def test_examples_of_the_help_work(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = flags.EXAMPLES.replace("\\\n", " ").splitlines()
    commands = [line.split()[1:] for line in lines if line.startswith("    flannelpy ")]
    variables = [line.strip().partition("=") for line in lines if line.startswith("    FLANNELD_")]
    assert (len(commands), len(variables)) == (2, 2)
    assert all(cli.parse(argv).iface == ("eth1",) for argv in commands)
    for name, _, text in variables:
        monkeypatch.setenv(name, text)
    assert differing(cli.parse([])) == {"iface": ("eth1",), "etcd_endpoints": ("http://10.0.0.1:2379",)}


@pytest.mark.parametrize("name", ["FLANNELD_VERSION", "FLANNELD_HELP", "FLANNELD_CLEANUP"])
def test_no_variable_makes_it_do_something_else(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "true")
    assert differing(cli.parse([])) == {}


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of(["-version"]) == 0
    assert capsys.readouterr() == ("", f"flannelpy {__version__} ({packet.build()})\n")


@pytest.mark.parametrize(
    ("file", "form"),
    [("/x/checksum.py", "interpreted"), ("/x/checksum.cpython-311-x86_64-linux-gnu.so", "compiled")],
)
def test_form(file: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from flannelpy.packet import checksum

    monkeypatch.setattr(checksum, "__file__", file)
    assert packet.build() == form


class TestCopyToV3:
    """The command line of the second command."""

    @pytest.mark.parametrize("follow", ["-follow", "--follow", "-follow=true"])
    def test_the_flags_of_the_store_are_the_daemons(self, follow: str) -> None:
        options, is_following = copy_to_v3.parse([follow, "-etcd-endpoints", "http://a:1", "--networks=blue"])
        assert is_following
        assert (options.etcd_endpoints, options.networks) == (("http://a:1",), ("blue",))

    def test_once_is_the_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FLANNELD_ETCD_PREFIX", "/other")
        options, is_following = copy_to_v3.parse([])
        assert not is_following
        assert options.etcd_prefix == "/other"

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["-iface=eth1"], "unknown flag -iface: -help lists all flags"),
            (["-folow"], "unknown flag -folow: did you mean -follow?"),
            (["now"], "extra argument 'now': only flags are expected, -help lists them"),
            (["-follow", "true"], "extra argument 'true': the value of a boolean follows '=', as in -follow=true"),
            (["-follow=2"], "bad value '2' for -follow: must be true or false"),
            (["-etcd-username=u"], "-etcd-username needs -etcd-password"),
        ],
    )
    def test_refusals(self, argv: list[str], message: str) -> None:
        with pytest.raises(UsageError) as caught:
            copy_to_v3.parse(argv)
        assert str(caught.value) == message

    def test_help_lists_its_flags(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            cli.main(["copy-to-v3", "-help"])
        assert caught.value.code == 0
        text = capsys.readouterr().err
        assert text.startswith("Usage: flannelpy copy-to-v3 [flags]\n")
        assert set(re.findall(r"^  -([a-z0-9-]+)", text, re.MULTILINE)) == {
            flag.flag for flag in copy_to_v3.COMMAND.flags
        }
        assert max(map(len, text.splitlines())) <= 80

    @pytest.mark.parametrize("argv", [["copy-to-v4"], ["-v=1", "copy-to-v3"], ["--", "copy-to-v3"]])
    def test_any_other_word_or_place_is_rejected_as_ever(self, argv: list[str]) -> None:
        assert refusal(argv) == f"extra argument {argv[-1]!r}: only flags are expected, -help lists them"
