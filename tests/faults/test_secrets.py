"""The password and the key for etcd appear neither in the log, nor in the status, nor in files, with any error."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from urllib.parse import quote

import pytest
from lab import ETCD_PREFIX, Daemon, Host, Lab
from lab.etcd_server import EtcdServer
from lab.etcd_stores import Api

from flannelpy.cli.flags import usage

pytestmark = pytest.mark.usefixtures("root")

USER, PASSWORD, WRONG = "overlay", "pass: wörd €/7Zq", "wröng: €/9Xk"
NO_ETCD = "http://172.17.8.1:9"


@pytest.fixture(scope="module")
def labs() -> Iterator[Callable[[Api], Lab]]:
    """Return a function that returns a host, and an etcd that has a config and accepts only USER."""
    with ExitStack() as open_labs:

        @cache
        def start(api: Api) -> Lab:
            lab = open_labs.enter_context(Lab(hosts=1, api=api))
            lab.put_config()
            _ONLY_USER[api](lab.etcd)
            return lab

        yield start


@pytest.fixture
def lab(labs: Callable[[Api], Lab], api: Api) -> Lab:
    return labs(api)


def _let_only_user_in_v2(etcd: EtcdServer) -> None:
    def put(path: str, **content: object) -> None:
        etcd.request("PUT", f"/v2/auth/{path}", body=json.dumps(content))

    keys = [f"{ETCD_PREFIX}*"]
    put("users/root", user="root", password="root")
    put("roles/guest", role="guest", permissions={"kv": {"read": [], "write": []}})
    put("roles/network", role="network", permissions={"kv": {"read": keys, "write": keys}})
    put(f"users/{USER}", user=USER, password=PASSWORD, roles=["network"])
    put("enable")


def _let_only_user_in_v3(etcd: EtcdServer) -> None:
    etcd.v3.add_role("network", ETCD_PREFIX)
    etcd.v3.add_user(USER, PASSWORD, ["network"])
    etcd.v3.enable_auth()


_ONLY_USER = {Api.V2: _let_only_user_in_v2, Api.V3: _let_only_user_in_v3}
over_both = pytest.mark.parametrize("api", [Api.V3, Api.V2])
over_v3_first = pytest.mark.parametrize("api", [Api.V3, pytest.param(Api.V2, marks=pytest.mark.soak)])


@pytest.fixture
def host(lab: Lab) -> Iterator[Host]:
    host = lab.hosts[0]
    host.run("rm", "-rf", "/run/flannel")
    yield host
    host.kill_daemons()


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a client's certificate and key, and ``broken.key``, a truncated key."""
    directory = tmp_path_factory.mktemp("pki")
    new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=client"
    command = ["openssl", *new.split(), "-keyout", "client.key", "-out", "client.crt"]
    subprocess.run(command, cwd=directory, check=True, capture_output=True)
    lines = (directory / "client.key").read_text().splitlines()
    (directory / "broken.key").write_text("\n".join(lines[:2]))
    return directory


def spellings(password: str) -> set[str]:
    """Return the password as text, as HTTP sends it, and as Python or a URL shows it."""
    basic = base64.b64encode(f"{USER}:{password}".encode()).decode()
    alone = base64.b64encode(password.encode()).decode()
    escaped = ascii(password)[1:-1], json.dumps(password)[1:-1], quote(password), quote(password, safe="")
    return {password, *escaped, basic, alone}


def assert_kept(daemon: Daemon, secrets: set[str]) -> None:
    """Assert that neither log nor status nor subnet file contains a spelling of the secret."""
    file = daemon.host.run_dir / "flannel/subnet.env"
    written = "\n".join([daemon.log(), *daemon.notified, file.read_text() if file.exists() else ""])
    assert [secret for secret in secrets if secret in written] == []


Given = Callable[[str], tuple[list[str], dict[str, str]]]


def by_flag(password: str) -> tuple[list[str], dict[str, str]]:
    return [f"-etcd-username={USER}", f"-etcd-password={password}"], {}


def by_variable(password: str) -> tuple[list[str], dict[str, str]]:
    return [], {"FLANNELD_ETCD_USERNAME": USER, "FLANNELD_ETCD_PASSWORD": password}


@pytest.fixture(params=[by_flag, by_variable])
def given(request: pytest.FixtureRequest) -> Given:
    way: Given = request.param
    return way


@over_both
def test_the_right_password(host: Host, given: Given) -> None:
    flags, env = given(PASSWORD)
    daemon = host.start_daemon("-iface=eth1", "-v=2", *flags, env=env)
    daemon.wait_ready()
    daemon.wait_for_log("Watching for new subnet leases")
    assert any(line.startswith("STATUS=subnet ") for line in daemon.notified)
    assert daemon.stop() == 0
    assert_kept(daemon, spellings(PASSWORD))


@over_both
def test_a_wrong_password(host: Host, given: Given) -> None:
    flags, env = given(WRONG)
    daemon = host.start_daemon("-iface=eth1", "-v=2", *flags, env=env)
    daemon.wait_for_log("-etcd-username and -etcd-password")
    assert daemon.stop() == 0
    assert_kept(daemon, spellings(WRONG))


@over_v3_first
@pytest.mark.parametrize(
    ("endpoints", "failures"),
    [
        (NO_ETCD, "connection refused"),
        (f"{NO_ETCD},http://nowhere.invalid:2379", "nowhere"),
        ("https://172.17.8.1:2379", "TLS failed"),
    ],
    ids=["no etcd", "no such name", "no TLS there"],
)
def test_an_endpoint_that_does_not_answer(host: Host, given: Given, endpoints: str, failures: str) -> None:
    flags, env = given(PASSWORD)
    daemon = host.start_daemon("-iface=eth1", "-v=2", *flags, env=env, endpoints=endpoints)
    daemon.wait_for_log(f"Failed to retrieve network config: .*{failures}")
    assert daemon.stop() == 0
    assert_kept(daemon, spellings(PASSWORD))


@over_v3_first
@pytest.mark.parametrize("place", ["flag", "variable"])
def test_a_password_where_none_belongs(host: Host, place: str) -> None:
    url = f"http://{USER}:{quote(PASSWORD, safe='')}@172.17.8.1:2379"
    env = {"FLANNELD_ETCD_ENDPOINTS": url} if place == "variable" else {}
    daemon = host.start_daemon("-iface=eth1", env=env, endpoints=url if place == "flag" else "")
    assert daemon.process.wait(10) == 2
    assert "not inside the URL" in daemon.log()
    assert_kept(daemon, spellings(PASSWORD))


@over_v3_first
def test_a_password_without_its_user(host: Host) -> None:
    daemon = host.start_daemon("-iface=eth1", f"-etcd-password={PASSWORD}")
    assert daemon.process.wait(10) == 2
    assert_kept(daemon, spellings(PASSWORD))


@over_v3_first
@pytest.mark.parametrize("endpoints", [None, "https://172.17.8.1:2379"], ids=["not needed", "no TLS there"])
def test_the_key_of_a_certificate(host: Host, pki: Path, endpoints: str | None) -> None:
    pair = [f"-etcd-certfile={pki / 'client.crt'}", f"-etcd-keyfile={pki / 'client.key'}"]
    flags, env = by_variable(PASSWORD)
    daemon = host.start_daemon("-iface=eth1", "-v=2", *flags, *pair, env=env, endpoints=endpoints)
    if endpoints:
        daemon.wait_for_log("TLS failed")
    else:
        daemon.wait_ready()
    assert daemon.stop() == 0
    assert_kept(daemon, spellings(PASSWORD) | _lines(pki / "client.key"))


@over_v3_first
@pytest.mark.parametrize(
    ("certificate", "key"), [("client.crt", "broken.key"), ("client.crt", "client.crt"), ("client.key", "client.key")]
)
def test_a_key_file_without_a_key(host: Host, pki: Path, certificate: str, key: str) -> None:
    daemon = host.start_daemon("-iface=eth1", f"-etcd-certfile={pki / certificate}", f"-etcd-keyfile={pki / key}")
    assert daemon.process.wait(10) == 1
    assert str(pki / key) in daemon.log()
    assert_kept(daemon, _lines(pki / "client.key") | _lines(pki / "client.crt"))


@over_v3_first
def test_only_the_flag_is_visible_to_other_users(host: Host, given: Given) -> None:
    """ps shows the command line of other users' processes, not the environment; -help mentions that."""
    flags, env = given(PASSWORD)
    daemon = host.start_daemon("-iface=eth1", *flags, env=env)
    daemon.wait_ready()
    command_line = Path(f"/proc/{daemon.pid}/cmdline").read_text()
    assert (PASSWORD in command_line) == (given is by_flag)
    assert Path(f"/proc/{daemon.pid}/environ").stat().st_mode & 0o077 == 0
    assert "every user of this host can see flags" in " ".join(usage().split())


def _lines(pem: Path) -> set[str]:
    """Return the lines of a file without the first and the last one, which are the same in all such files."""
    return {line for line in pem.read_text().splitlines() if "-----" not in line}
