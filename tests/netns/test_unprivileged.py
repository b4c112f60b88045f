"""The daemon runs as its systemd unit starts it: as a user with two capabilities, in a read-only system."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import Daemon, Host, Lab, wait_connected
from support.systemd_units import PeerEntries

import flannelpy

SERVICE = PeerEntries("flannelpy.service")["Service"]
UID = 61999  # no account has this ID, so no file belongs to it
NET_ADMIN, NET_RAW = 12, 13  # include/uapi/linux/capability.h


def sandbox() -> str:
    """Return a script that is Python as systemd would run it, in a private mount namespace."""
    runtime_directory = f"/run/{SERVICE['RuntimeDirectory']}"
    lines = [
        "#!/bin/sh -eu",
        f"mkdir -p {runtime_directory}",
        f"chown -R {UID}:{UID} {runtime_directory}",
        _lock_command(),
        # The permissions that systemd's udev rules set.
        "mount -t tmpfs -o mode=755 none /dev/net",
        "mknod -m 666 /dev/net/tun c 10 200",
        *_reachable(sys.base_prefix, sys.prefix, Path(flannelpy.__file__).parents[1]),
        # ProtectSystem=strict
        f"mount --bind {runtime_directory} {runtime_directory}",
        "mount -o remount,bind,ro /run",
        "mount -o remount,bind,ro /",
        f'exec {_setpriv()} {shlex.quote(sys.executable)} "$@"',
    ]
    return "\n".join(lines) + "\n"


def _lock_command() -> str:
    """Return the unit's ExecStartPre= for the lock of iptables-legacy, with the group of the test's user."""
    [command] = [line for line in SERVICE["ExecStartPre"].split("\n") if "xtables.lock" in line]
    return command.lstrip("+").replace(f"chgrp {SERVICE['User']} ", f"chgrp {UID} ")


def _setpriv() -> str:
    ambient = _capabilities("AmbientCapabilities")
    return (
        f"setpriv --reuid={UID} --regid={UID} --clear-groups --inh-caps={ambient} --ambient-caps={ambient}"
        f" --bounding-set={_capabilities('CapabilityBoundingSet')}"
        + (" --no-new-privs" if SERVICE["NoNewPrivileges"] == "yes" else "")
    )


def _capabilities(key: str) -> str:
    """Return a capability list of the unit in setpriv's syntax."""
    names = [name.removeprefix("CAP_").lower() for name in SERVICE[key].split()]
    return ",".join(["-all", *(f"+{name}" for name in names)])


def _reachable(*needed: str | Path) -> list[str]:
    """Return commands that make these directories readable for every user, also inside a private home."""
    paths = [Path(each).resolve() for each in needed]
    closed = {
        path: next((top for top in reversed(path.parents) if not top.stat().st_mode & 0o001), None) for path in paths
    }
    inside = [path for path in closed if closed[path]]
    kept = {path: f"/run/kept/{number}" for number, path in enumerate(inside)}
    return [
        *(f"mkdir -p {kept[path]} && mount --bind {shlex.quote(str(path))} {kept[path]}" for path in inside),
        *(f"mount -t tmpfs -o mode=755 none {shlex.quote(str(top))}" for top in {closed[path] for path in inside}),
        *(f"mkdir -p {shlex.quote(str(path))}" for path in inside),
        *(f"mount --bind {kept[path]} {shlex.quote(str(path))}" for path in inside),
    ]


def started(host: Host, flavour: str) -> Daemon:
    """Start a daemon with ``iptables`` of this flavour."""
    tools = host.run_dir / flavour
    tools.mkdir()
    for tool in ("iptables", "iptables-restore", "iptables-save"):
        (tools / tool).symlink_to(f"/usr/sbin/{tool.replace('iptables', f'iptables-{flavour}')}")
    (tools / "python").write_text(sandbox())
    (tools / "python").chmod(0o755)
    path = f"/run/{flavour}:{os.environ['PATH']}"
    return host.start_daemon("-iface=eth1", "-ip-masq", env={"PATH": path}, python=f"/run/{flavour}/python")


def powers(daemon: Daemon) -> dict[str, str]:
    """Return user and capabilities of the daemon from the kernel."""
    lines = (line.split(":", 1) for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines())
    return {key: " ".join(value.split()) for key, value in lines if key[:3] in {"Uid", "Gid", "Gro", "Cap", "NoN"}}


@pytest.mark.parametrize("flavour", ["nft", "legacy"])
def test_the_capabilities_of_the_systemd_unit_suffice(make_lab: Callable[..., Lab], flavour: str) -> None:
    lab = make_lab(hosts=2)
    lab.put_config()
    daemons = [started(host, flavour) for host in lab.hosts]
    wait_connected(daemons)

    two = f"{1 << NET_ADMIN | 1 << NET_RAW:016x}"
    for daemon in daemons:
        assert powers(daemon) == {
            "Uid": " ".join([str(UID)] * 4),
            "Gid": " ".join([str(UID)] * 4),
            "Groups": "",
            **dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), two),
            "NoNewPrivs": "1",
        }

    one, other = (host.add_container() for host in lab.hosts)
    assert "ttl=60 " in one.run("ping", "-c1", "-W2", str(other.address)).stdout
    for host in lab.hosts:
        assert (
            "-A POSTROUTING -j FLANNEL-M-11.0.0.0/16\n"
            in host.run(f"/usr/sbin/iptables-{flavour}", "-t", "nat", "-S").stdout
        )
    if flavour == "nft":  # that user may not read which tables iptables-legacy has
        lab.hosts[0].run("iptables-legacy", "-P", "FORWARD", "DROP")
        daemons[0].wait_for_log("'-P FORWARD DROP' drops packets .*listed by iptables-legacy-save")
    assert [daemon.stop() for daemon in daemons] == [0, 0]
    assert "flannel0" not in lab.hosts[0].run("ip", "link").stdout


def test_the_capabilities_suffice_for_vxlan(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=2)
    lab.put_config('{"Network":"11.0.0.0/16","Backend":{"Type":"vxlan"}}')
    wait_connected([started(host, "nft") for host in lab.hosts])
    one, other = (host.add_container() for host in lab.hosts)
    assert "ttl=62 " in one.run("ping", "-c1", "-W2", str(other.address)).stdout


def test_a_subnet_file_that_root_has_left_is_used_and_replaced(make_lab: Callable[..., Lab]) -> None:
    """An earlier run was root's: systemd gives RuntimeDirectory= and its content to the new user."""
    lab = make_lab(hosts=1)
    [host] = lab.hosts
    lab.put_config()
    old = host.start_daemon("-iface=eth1")
    old.wait_ready()
    subnet = host.subnet()
    old.stop()
    started(host, "nft").wait_ready()
    assert host.subnet() == subnet
    assert (host.run_dir / "flannel/subnet.env").stat().st_uid == UID
