"""mk-docker-opts.sh: the output of flannel v0.5.5's script, byte for byte, under every shell that is here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "mk-docker-opts.sh"
SHELLS = [shell for shell in ("sh", "dash", "bash", "busybox") if shutil.which(shell)]

SUBNET = "FLANNEL_NETWORK=11.0.0.0/16\nFLANNEL_SUBNET=11.0.13.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"
MASQUERADED = SUBNET.replace("=false", "=true")

BIP = 'DOCKER_OPT_BIP="--bip=11.0.13.1/24"\n'
DOCKER_MASQUERADES = 'DOCKER_OPT_IPMASQ="--ip-masq=true"\n'
FLANNELPY_MASQUERADES = 'DOCKER_OPT_IPMASQ="--ip-masq=false"\n'
MTU = 'DOCKER_OPT_MTU="--mtu=1472"\n'
SINGLE = BIP + DOCKER_MASQUERADES + MTU
COMBINED = ' --bip=11.0.13.1/24 --ip-masq=true --mtu=1472 "\n'

OUTPUTS = {
    "neither is both": ([], SUBNET, {}, SINGLE + 'DOCKER_OPTS="' + COMBINED),
    "both": (["-i", "-c"], SUBNET, {}, SINGLE + 'DOCKER_OPTS="' + COMBINED),
    "single": (["-i"], SUBNET, {}, SINGLE),
    "combined": (["-c"], SUBNET, {}, 'DOCKER_OPTS="' + COMBINED),
    "options in one word": (["-ic"], SUBNET, {}, SINGLE + 'DOCKER_OPTS="' + COMBINED),
    "flannelpy masquerades": (["-i"], MASQUERADED, {}, BIP + FLANNELPY_MASQUERADES + MTU),
    "no masquerading option": (["-i", "-m"], SUBNET, {}, BIP + MTU),
    "no masquerading option, combined": (["-cm"], SUBNET, {}, 'DOCKER_OPTS=" --bip=11.0.13.1/24 --mtu=1472 "\n'),
    "-m looks at no value": (["-im"], SUBNET.replace("=false", "=perhaps"), {}, BIP + MTU),
    "other key": (["-c", "-k", "DOCKER_NETWORK_OPTIONS"], SUBNET, {}, 'DOCKER_NETWORK_OPTIONS="' + COMBINED),
    "-k leaves the single ones alone": (["-i", "-k", "OPTS"], SUBNET, {}, SINGLE),
    "file of v0.2.0": (
        [],
        "FLANNEL_SUBNET=10.1.7.1/24\nFLANNEL_MTU=1472\n",
        {},
        'DOCKER_OPT_BIP="--bip=10.1.7.1/24"\n' + MTU + 'DOCKER_OPTS=" --bip=10.1.7.1/24 --mtu=1472 "\n',
    ),
    "combined variable was set": (
        ["-c"],
        SUBNET,
        {"DOCKER_OPTS": "--dns=11.0.0.2 -D"},
        'DOCKER_OPTS="--dns=11.0.0.2 -D' + COMBINED,
    ),
    "variable of another key was set": (["-c", "-k", "OPTS"], SUBNET, {"OPTS": "-D"}, 'OPTS="-D' + COMBINED),
    "combined variable in the subnet file": (["-c"], SUBNET + "DOCKER_OPTS=-D\n", {}, 'DOCKER_OPTS="-D' + COMBINED),
    "own option goes along, sorted": (
        [],
        SUBNET,
        {"DOCKER_OPT_DNS": "--dns=11.0.0.2 --dns=11.0.0.3"},
        BIP
        + 'DOCKER_OPT_DNS="--dns=11.0.0.2 --dns=11.0.0.3"\n'
        + DOCKER_MASQUERADES
        + MTU
        + 'DOCKER_OPTS=" --bip=11.0.13.1/24 --dns=11.0.0.2 --dns=11.0.0.3 --ip-masq=true --mtu=1472 "\n',
    ),
    "subnet file wins over an own option": (["-i"], SUBNET, {"DOCKER_OPT_MTU": "--mtu=9000"}, SINGLE),
    "own option that the subnet file has not": (
        ["-i"],
        "FLANNEL_SUBNET=11.0.13.1/24\n",
        {"DOCKER_OPT_MTU": "--mtu=9000"},
        BIP + 'DOCKER_OPT_MTU="--mtu=9000"\n',
    ),
    "the file's subnet, not that of the environment": (["-i"], SUBNET, {"FLANNEL_SUBNET": "11.0.99.1/24"}, SINGLE),
    "similar names": (["-i"], SUBNET, {"XDOCKER_OPT_A": "1", "DOCKER_OPTIONS": "2"}, SINGLE),
    "a value that looks like an option": (["-i"], SUBNET, {"TEXT": "a\nDOCKER_OPT_X=1"}, SINGLE),
    "further arguments": (["-i", "more"], SUBNET, {}, SINGLE),
}


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> list[str]:
    name: str = request.param
    return ["busybox", "sh"] if name == "busybox" else [name]


def run(
    shell: list[str], cwd: Path, options: list[str], environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*shell, str(SCRIPT), *options],
        cwd=cwd,
        env={"PATH": os.environ["PATH"]} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("options", "subnet", "environment", "expected"), OUTPUTS.values(), ids=OUTPUTS)
def test_output(
    shell: list[str],
    tmp_path: Path,
    options: list[str],
    subnet: str,
    environment: dict[str, str],
    expected: str,
) -> None:
    (tmp_path / "subnet.env").write_text(subnet)
    files = ["-f", str(tmp_path / "subnet.env"), "-d", str(tmp_path / "docker.env")]
    done = run(shell, tmp_path, files + options, environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "docker.env").read_bytes() == expected.encode()


def test_earlier_output_is_replaced(shell: list[str], tmp_path: Path) -> None:
    (tmp_path / "subnet.env").write_text(SUBNET)
    (tmp_path / "docker.env").write_text("OLD=1\n" * 100)
    assert run(shell, tmp_path, ["-i", "-f", "subnet.env", "-d", "docker.env"], {}).returncode == 0
    assert (tmp_path / "docker.env").read_text() == SINGLE


def test_paths_with_spaces(shell: list[str], tmp_path: Path) -> None:
    (tmp_path / "subnet file").write_text(SUBNET)
    assert run(shell, tmp_path, ["-i", "-f", "subnet file", "-d", "docker file"], {}).returncode == 0
    assert (tmp_path / "docker file").read_text() == SINGLE


def test_name_without_slash_is_not_looked_for_in_path(shell: list[str], tmp_path: Path) -> None:
    """The original sources ``-f true`` from PATH, if there is one."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "env.file").write_text("FLANNEL_MTU=1\n")
    (tmp_path / "env.file").write_text(SUBNET)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    assert run(shell, tmp_path, ["-i", "-f", "env.file", "-d", "docker.env"], {"PATH": path}).returncode == 0
    assert (tmp_path / "docker.env").read_text() == SINGLE


@pytest.mark.parametrize("options", [["-h"], ["-x"], ["-f"], ["-k"]])
def test_usage(shell: list[str], tmp_path: Path, options: list[str]) -> None:
    done = run(shell, tmp_path, options, {})
    assert (done.returncode, done.stdout) == (1, "")
    assert "Usage: " in done.stderr
    assert all(f"\n  {option}" in done.stderr for option in ("-f FILE", "-d FILE", "-i", "-c", "-k NAME", "-m"))


def test_bad_masquerade_value_leaves_the_output_alone(shell: list[str], tmp_path: Path) -> None:
    (tmp_path / "subnet.env").write_text(SUBNET.replace("=false", "=perhaps"))
    (tmp_path / "docker.env").write_text("OLD=1\n")
    done = run(shell, tmp_path, ["-f", "subnet.env", "-d", "docker.env"], {})
    assert done.returncode == 1
    assert done.stderr == f"{SCRIPT}: FLANNEL_IPMASQ must be true or false\n"
    assert (tmp_path / "docker.env").read_text() == "OLD=1\n"


@pytest.mark.parametrize(
    "line",
    [
        "touch evil",
        "FLANNEL_MTU=$(touch evil)",
        "FLANNEL_MTU=`touch evil`",
        "FLANNEL_MTU=1472; touch evil",
        "FLANNEL_MTU=1472 touch evil",
        "PATH=.",
        "FLANNEL_MTU='1'",
        "FLANNEL_MTU=1472\\",
        "FLANNEL_MTU=1472\0; touch evil",
        "root:$6$secret:19000::::::",
        "\u00dcber \u2028 evil",
    ],
)
def test_a_subnet_file_is_no_script(shell: list[str], tmp_path: Path, line: str) -> None:
    """An attacker who controls the daemon must not become root when Docker starts."""
    (tmp_path / "subnet.env").write_text(f"# ours\n\n{SUBNET}{line}\nanother line\n")
    done = run(shell, tmp_path, ["-f", "subnet.env", "-d", "docker.env"], {})
    assert done.returncode == 1
    assert done.stderr == f"{SCRIPT}: subnet.env: line 7 is not of the form FLANNEL_MTU=1472\n"
    assert [file.name for file in tmp_path.iterdir()] == ["subnet.env"]


@pytest.mark.parametrize("kind", ["nothing", "directory", "fifo", "device", "link to nothing", "link to a directory"])
def test_without_a_subnet_file_docker_gets_no_options(shell: list[str], tmp_path: Path, kind: str) -> None:
    path = tmp_path / "subnet.env"
    (tmp_path / "docker.env").write_text("OLD=1\n")
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "link to nothing":
            path.symlink_to("missing")
        case "link to a directory":
            path.symlink_to(tmp_path)
    files = ["-f", "subnet.env", "-d", "docker.env"]
    done = run(shell, tmp_path, files, {"FLANNEL_SUBNET": "11.0.13.1/24", "DOCKER_OPT_MTU": "--mtu=9000"})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{SCRIPT}: subnet.env is not a subnet file: does flannelpy run?\n"
    assert (tmp_path / "docker.env").read_text() == "OLD=1\n"


@pytest.mark.parametrize(
    "content", ["", "\n", "# FLANNEL_SUBNET=11.0.13.1/24\n", "FLANNEL_SUBNET=\n", "FLANNEL_MTU=1472"]
)
def test_a_subnet_file_without_a_subnet_gives_no_options(shell: list[str], tmp_path: Path, content: str) -> None:
    (tmp_path / "subnet.env").write_text(content)
    files = ["-f", "subnet.env", "-d", "docker.env"]
    done = run(shell, tmp_path, files, {"FLANNEL_SUBNET": "11.0.13.1/24"})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{SCRIPT}: subnet.env has no FLANNEL_SUBNET: does flannelpy run?\n"
    assert [file.name for file in tmp_path.iterdir()] == ["subnet.env"]


def test_a_link_to_a_file_of_roots_prints_nothing_of_it(shell: list[str], tmp_path: Path) -> None:
    secret = "root:$6$salt$hash:19000:0:99999:7:::"
    (tmp_path / "shadow").write_text(f"{secret}\ndaemon:*:19000\n")
    (tmp_path / "subnet.env").symlink_to("shadow")
    done = run(shell, tmp_path, ["-f", "subnet.env", "-d", "docker.env"], {})
    assert done.returncode == 1
    assert done.stderr == f"{SCRIPT}: subnet.env: line 1 is not of the form FLANNEL_MTU=1472\n"
    assert not (tmp_path / "docker.env").exists()


@pytest.mark.parametrize("key", ["", "1A", "A B", "A;touch evil", "$(touch evil)"])
def test_bad_key(shell: list[str], tmp_path: Path, key: str) -> None:
    done = run(shell, tmp_path, ["-k", key, "-d", "docker.env"], {})
    assert done.returncode == 1
    assert f"-k needs the name of a variable, not '{key}'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_output_that_cannot_be_written(shell: list[str], tmp_path: Path) -> None:
    (tmp_path / "subnet.env").write_text(SUBNET)
    done = run(shell, tmp_path, ["-i", "-f", "subnet.env", "-d", "missing/docker.env"], {})
    assert done.returncode == 1
    assert "can't write missing/docker.env" in done.stderr
