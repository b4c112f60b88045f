"""HTTP of a real daemon: who may read what, hostile clients, the process that serves it, and a real Prometheus."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Daemon, Host, Lab, prometheus_packages, wait_for
from support.lateness import assert_no_packet_is_late, ended

PORT = 8471
PROJECT = Path(__file__).parents[2]
ATTACK = Path(__file__).with_name("hostile_http.py")
PROMETHEUS = """
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [RULES]
scrape_configs:
  - job_name: flannelpy
    static_configs: [{targets: ["127.0.0.1:8471"]}]
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two hosts whose daemons serve HTTP, the first also at its address of the underlay, the second with all peers."""
    with Lab(hosts=2) as lab:
        lab.put_config()
        lab.hosts[0].start_daemon("-iface=eth1", f"-healthz-port={PORT}", "-metrics-ip=172.17.8.101")
        lab.hosts[1].start_daemon("-iface=eth1", f"-healthz-port={PORT}", "-metrics-peers")
        for host, other in (lab.hosts, lab.hosts[::-1]):
            host.daemons[-1].wait_ready(60)
            other.daemons[-1].wait_ready(60)
            host.daemons[-1].wait_for_peer(other.subnet(), 60)
        yield lab


def get(host: Host, address: str, path: str, *headers: str) -> tuple[int, str]:
    """Return status and body of a page, as a program on ``host`` gets it."""
    script = (
        "import http.client, sys\n"
        "connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=20)\n"
        "headers = dict(each.split(': ') for each in sys.argv[4:])\n"
        "connection.request('GET', sys.argv[3], headers=headers)\n"
        "response = connection.getresponse()\n"
        "print(response.status); print(response.read().decode(), end='')"
    )
    out = host.run(sys.executable, "-I", "-S", "-c", script, address, str(PORT), path, *headers).stdout
    status, _, body = out.partition("\n")
    return int(status), body


def http_process(daemon: Daemon) -> int:
    """Return the pid of the HTTP process of a daemon."""
    children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children")

    def found() -> int | None:
        pids = [int(pid) for pid in children.read_text().split()]
        return next((pid for pid in pids if b"flannelpy.web" in Path(f"/proc/{pid}/cmdline").read_bytes()), None)

    return wait_for(found, 20, "the HTTP process")


def resident_kb(pid: int) -> int:
    match = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert match
    return int(match[1])


def test_who_may_read_what(lab: Lab) -> None:
    first, second = lab.hosts
    for asks, address in ((first, "127.0.0.1"), (first, "172.17.8.102"), (second, "172.17.8.101")):
        assert get(asks, address, "/healthz") == (200, "flanneld is running")
        assert get(asks, address, "/readyz") == (200, "flanneld is ready")
    for asks, address, peers in ((first, "127.0.0.1", 0), (second, "172.17.8.101", 0), (second, "127.0.0.1", 1)):
        status, text = get(asks, address, "/metrics")
        assert status == 200
        assert 'flannelpy_network_ready{network=""} 1.0\n' in text
        assert text.count("\nflannelpy_peer_reachable{") == peers
        document = json.loads(get(asks, address, "/status.json")[1])
        assert len(document["networks"][0]["peers"]) == 1
    for path in ("/metrics", "/status.json"):
        assert get(first, "172.17.8.102", path)[0] == 403  # -metrics-ip is that of the other host only
        assert get(second, "172.17.8.101", path, "Host: evil.example")[0] == 403


def test_metrics_count_what_the_daemon_carries(lab: Lab) -> None:
    first, second = lab.hosts

    def packets() -> float:
        match = re.search(r'^flannelpy_packets_total\{direction="out",network=""\} (\S+)$', page(), re.MULTILINE)
        assert match
        return float(match[1])

    def page() -> str:
        return get(first, "127.0.0.1", "/metrics")[1]

    before = packets()
    first.run("ping", "-c20", "-i0.01", str(second.subnet().network_address))
    wait_for(lambda: packets() >= before + 20, 10, "the count of 20 packets", pause=0.2)


def test_the_process_has_no_rights_and_comes_back(lab: Lab) -> None:
    host = lab.hosts[0]
    pid = http_process(host.daemons[-1])
    text = Path(f"/proc/{pid}/status").read_text()
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert re.search(rf"^{name}:\s+0+$", text, re.MULTILINE), name
    assert re.search(r"^Uid:(\s+65534){4}$", text, re.MULTILINE)
    host.run("kill", "-KILL", str(pid))
    assert get(host, "127.0.0.1", "/healthz")[0] == 200  # the client waited
    host.daemons[-1].wait_for_log("HTTP process ended: killed by SIGKILL; starting it again in 1 s")
    assert http_process(host.daemons[-1]) != pid


def test_a_daemon_whose_event_loop_hangs_is_not_alive(lab: Lab) -> None:
    daemon = lab.hosts[1].daemons[-1]
    http_process(daemon)
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        wait_for(lambda: get(lab.hosts[1], "127.0.0.1", "/healthz")[0] == 503, 10, "503 from /healthz", pause=0.2)
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    wait_for(lambda: get(lab.hosts[1], "127.0.0.1", "/healthz")[0] == 200, 10, "200 from /healthz", pause=0.2)


@pytest.mark.timed
def test_hostile_clients_delay_no_packet_and_keep_no_probe_out(lab: Lab) -> None:
    first, second = lab.hosts
    daemon = first.daemons[-1]
    get(second, "172.17.8.101", "/status.json")
    log, before = daemon.log(), resident_kb(daemon.pid)
    argv = ["nice", "-n19", sys.executable, "-I", str(ATTACK), "172.17.8.101", str(PORT)]
    with ended(second.popen(*argv)) as attack:
        assert attack.stdout
        assert attack.stdout.readline() == "1000 idle connections\n"
        assert_no_packet_is_late(second, first.subnet().network_address, attack)
        assert get(first, "127.0.0.1", "/healthz")[0] == 200
        assert get(first, "127.0.0.1", "/readyz")[0] == 200
        attack.terminate()
    assert resident_kb(daemon.pid) - before < 1024
    assert resident_kb(http_process(daemon)) < 100 * 1024
    assert daemon.log() == log


def test_a_port_that_is_taken_ends_the_start(lab: Lab) -> None:
    host = lab.hosts[1]
    second = host.start_daemon("-iface=eth1", "-subnet-file=/run/flannel/b.env", f"-healthz-port={PORT}")
    assert second.process.wait(20) == 1
    second.close()
    assert f"cannot listen on TCP 0.0.0.0:{PORT}: Address already in use; see -healthz-ip" in second.log()


def test_promtool_accepts_the_metrics(lab: Lab) -> None:
    host = lab.hosts[1]
    promtool = prometheus_packages.unpack("debian12") / "usr/bin/promtool"
    done = host.run(str(promtool), "check", "metrics", input=get(host, "127.0.0.1", "/metrics")[1])
    assert done.stdout + done.stderr == ""


def test_prometheus_scrapes_a_daemon_and_loads_the_alert_rules(lab: Lab, tmp_path: Path) -> None:
    host = lab.hosts[0]
    program = prometheus_packages.unpack("debian12") / "usr/bin/prometheus"
    config = tmp_path / "prometheus.yml"
    config.write_text(PROMETHEUS.replace("RULES", str(PROJECT / "scripts/prometheus/flannelpy.rules.yml")))
    flags = (f"--config.file={config}", f"--storage.tsdb.path={tmp_path}/data", "--web.listen-address=127.0.0.1:9090")
    with (tmp_path / "log").open("w") as log:
        server = host.popen(str(program), *flags, stdout=log, stderr=log)

    def api(query: str) -> dict[str, object]:
        script = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).read().decode())"
        done = host.run(sys.executable, "-I", "-S", "-c", script, f"http://127.0.0.1:9090/api/v1/{query}", check=False)
        answer: dict[str, object] = json.loads(done.stdout or "{}").get("data", {})
        return answer

    ready = 'query?query=up{job="flannelpy"}==1%20and%20on()%20flannelpy_network_ready==1'
    wait_for(lambda: api(ready).get("result"), 30, "a scrape of the daemon", pause=0.3)
    groups = api("rules")["groups"]
    assert isinstance(groups, list)
    assert [rule["health"] for rule in groups[0]["rules"]] == ["ok"] * 6
    assert [rule["state"] for rule in groups[0]["rules"]] == ["inactive"] * 6
    server.terminate()
    server.wait(20)
