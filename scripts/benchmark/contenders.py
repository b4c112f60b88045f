"""What carries packets between two hosts: flannelpy in both forms, and what it is compared with.

All contenders of a rack share one switch; each has two hosts.  Every host has a container behind a bridge, with the
address and MTU of its subnet file, which the benchmark writes for contenders that write none.

flannelpy          the udp backend's loop, its packet code compiled
flannelpy-kernel   the same with -datapath=kernel: eBPF programs carry the packets
interpreted        the loop, uncompiled, in an environment of its own
socat              a TUN and a UDP socket, and C that moves one packet a system call
vxlan              the kernel's own overlay, made by hand; it has no daemon
flannelpy-vxlan    flannelpy's vxlan backend, which makes the same
veth               no overlay: static routes between the hosts
flannelpy-host-gw  flannelpy's host-gw backend, which sets the same routes
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

from lab import UNDERLAY, Host, Lab, wait_connected, wait_for

from benchmark.traffic import cpu_seconds, resident_megabytes
from benchmark.underlay import Underlay
from flannelpy.host import subnet_file

if TYPE_CHECKING:
    from contextlib import ExitStack

    from lab import Container, Daemon

#: In the order in which they are measured: what is made by hand, and at once what flannelpy makes of the same kind.
NAMES = (
    "flannelpy",
    "flannelpy-kernel",
    "interpreted",
    "socat",
    "vxlan",
    "flannelpy-vxlan",
    "veth",
    "flannelpy-host-gw",
)
#: The contenders of which the kernel moves the packets and flannelpy sets that up, and the backend that does it.
BACKENDS = {"flannelpy-vxlan": "vxlan", "flannelpy-host-gw": "host-gw"}
#: The contenders without a daemon.
BY_HAND = ("vxlan", "veth")
#: The flag that has eBPF programs carry the packets.
KERNEL_FLAG = "-datapath=kernel"

_NETWORK = IPv4Network("11.0.0.0/16")
_UDP_OVERHEAD = 28
_VXLAN_OVERHEAD = 50
_PORT = 8285
_VXLAN_PORT = 8472
_IN_FULL = ("flannelpy", "flannelpy-kernel", "socat", "vxlan")

#: Connects two hosts; the processes that carry the packets.
Connect = Callable[[Sequence[Host]], list[int]]


@dataclass
class Contender:
    """Two containers on two hosts, and the processes between them."""

    client: Container
    server: Container
    pids: list[int]
    megabytes_before: float = field(init=False)

    def __post_init__(self) -> None:
        self.megabytes_before = self.megabytes()

    def megabytes(self) -> float:
        """Resident size of the larger process, 0 when there is none."""
        return max(map(resident_megabytes, self.pids), default=0)

    def cpu_seconds(self) -> list[float]:
        """Return the processor time of each process up to now."""
        return [cpu_seconds([pid]) for pid in self.pids]


class Rack:
    """A lab with two hosts for each of the contenders."""

    def __init__(
        self, names: Sequence[str], interpreter: str, mtu: int = 1500, underlay: Underlay = Underlay.PLAIN
    ) -> None:
        self.contenders: dict[str, Contender] = {}
        self.underlay = underlay
        self._connect = {name: connect for name, connect in _all(interpreter).items() if name in names}
        self._mtu = mtu

    def build(self, cleanup: ExitStack) -> None:
        """Connect all hosts, until ``cleanup``."""
        lab = cleanup.enter_context(Lab(hosts=2 * len(self._connect), mtu=self._mtu))
        self.underlay.set_up(lab)
        lab.put_config(f'{{"Network":"{_NETWORK}"}}')
        for (name, connect), *pair in zip(self._connect.items(), lab.hosts[::2], lab.hosts[1::2], strict=True):
            self.contenders[name] = contender(pair, connect)


def contender(hosts: Sequence[Host], connect: Connect) -> Contender:
    """Two hosts, connected and proven to be."""
    pids = connect(hosts)
    client, server = (host.add_container() for host in hosts)
    ping = ["ping", "-c1", "-W1", str(server.address)]
    wait_for(lambda: client.run(*ping, check=False).returncode == 0, 10, f"a ping from {client.name}")
    return Contender(client, server, pids)


def flannelpy(hosts: Sequence[Host], *flags: str, python: str = sys.executable, form: str = "compiled") -> list[int]:
    """Return a daemon on each.  Raises RuntimeError unless their packet code has that form."""
    daemons = _started(hosts, *flags, python=python)
    for daemon in daemons:
        if f"Packet code {form}," not in daemon.log():
            raise RuntimeError(f"the packet code of {python} is not {form}:\n{daemon.log()}")
    if KERNEL_FLAG in flags:
        wait_for(lambda: all(_is_carried_by_kernel(*pair) for pair in _each_way(hosts)), 30, "packets in the kernel")
    return [daemon.pid for daemon in daemons]


def measured_in_full(names: Sequence[str]) -> list[str]:
    """Return those that are also measured on the wire, with an MTU of 9000, and by what takes long."""
    return [name for name in names if name in _IN_FULL]


def not_like_by_hand(names: Sequence[str]) -> list[str]:
    """Return those that do not only have to be like what is made by hand."""
    return [name for name in names if name not in BACKENDS]


def put_network(lab: Lab, backend: str) -> str:
    """Tell etcd of one more network, with that backend.  Returns its etcd prefix."""
    prefix = f"/{backend}"
    lab.etcd.put(f"{prefix}/config", f'{{"Network":"{_NETWORK}","Backend":{{"Type":"{backend}"}}}}')
    return prefix


def _all(interpreter: str) -> dict[str, Connect]:
    connects: dict[str, Connect] = {
        "flannelpy": flannelpy,
        "flannelpy-kernel": _flannelpy_kernel,
        "interpreted": partial(flannelpy, python=interpreter, form="interpreted"),
        "socat": _socat,
        "vxlan": _vxlan,
        "veth": _veth,
    }
    return connects | {name: partial(_by_backend, backend) for name, backend in BACKENDS.items()}


def _by_backend(backend: str, hosts: Sequence[Host]) -> list[int]:
    """Return a daemon on each, in a network of their own."""
    prefix = put_network(hosts[0].lab, backend)
    return [daemon.pid for daemon in _started(hosts, f"-etcd-prefix={prefix}")]


def _flannelpy_kernel(hosts: Sequence[Host]) -> list[int]:
    """Return a daemon on each, in a network of their own: no peer of theirs is served by the loop."""
    return flannelpy(hosts, f"-etcd-prefix={put_network(hosts[0].lab, 'udp')}", KERNEL_FLAG)


def _is_carried_by_kernel(host: Host, other: Host) -> bool:
    """Whether a ping to the other host is answered, and the loop of this one gets no packet of it."""
    before = _packets_for_loop(host)
    done = host.run("ping", "-c1", "-W1", str(other.subnet().network_address), check=False)
    return done.returncode == 0 and _packets_for_loop(host) == before


def _packets_for_loop(host: Host) -> int:
    return int(host.run("cat", "/sys/class/net/flannel0/statistics/tx_packets").stdout)


def _started(hosts: Sequence[Host], *flags: str, python: str = sys.executable) -> list[Daemon]:
    daemons = [host.start_daemon("-iface=eth1", *flags, python=python) for host in hosts]
    wait_connected(daemons)
    return daemons


def _socat(hosts: Sequence[Host]) -> list[int]:
    return [_start_socat(host, other) for host, other in _each_way(hosts)]


def _start_socat(host: Host, other: Host) -> int:
    """Its buffer has to hold a packet of any MTU; the default is 8 KB."""
    mtu = _give_subnet(host, _UDP_OVERHEAD)
    tun = f"TUN:{_subnet(host).network_address}/{_NETWORK.prefixlen},tun-name=flannel0,iff-no-pi,up"
    udp = f"UDP4-DATAGRAM:{other.public_ip}:{_PORT},bind={host.public_ip}:{_PORT}"
    process = host.popen("socat", "-b65536", tun, udp)
    wait_for(lambda: host.run("ip", "link", "show", "flannel0", check=False).returncode == 0, 10, "socat's TUN")
    host.configure(f"link set flannel0 mtu {mtu}")
    return process.pid


def _vxlan(hosts: Sequence[Host]) -> list[int]:
    """Return what the vxlan backend does, too."""
    for host, other in _each_way(hosts):
        mtu = _give_subnet(host, _VXLAN_OVERHEAD)
        peer = _subnet(other).network_address
        host.configure(
            f"link add flannel.1 mtu {mtu} txqueuelen 0 address {_mac(host)} "
            f"type vxlan id 1 local {host.public_ip} dev eth1 dstport {_VXLAN_PORT} nolearning",
            f"address add {_subnet(host).network_address}/{_NETWORK.prefixlen} dev flannel.1",
            "link set flannel.1 up",
            f"neighbour add {peer} lladdr {_mac(other)} dev flannel.1 nud permanent",
            f"route add {_subnet(other)} via {peer} dev flannel.1 onlink",
        )
        host.run("bridge", "fdb", "add", _mac(other), "dev", "flannel.1", "dst", str(other.public_ip))
    return []


def _veth(hosts: Sequence[Host]) -> list[int]:
    for host, other in _each_way(hosts):
        _give_subnet(host, 0)
        host.configure(f"route add {_subnet(other)} via {other.public_ip}")
    return []


def _each_way(hosts: Sequence[Host]) -> list[tuple[Host, Host]]:
    one, other = hosts
    return [(one, other), (other, one)]


def _give_subnet(host: Host, overhead: int) -> int:
    """Write the subnet file that flannelpy would write.  Returns the MTU in it."""
    mtu = host.lab.mtu - overhead
    path = host.run_dir / "flannel/subnet.env"
    subnet_file.write(path, subnet_file.render(_NETWORK, _subnet(host), mtu, ip_masq=False))
    return mtu


def _subnet(host: Host) -> IPv4Network:
    number = int(host.public_ip) - int(UNDERLAY.network.network_address)
    return IPv4Network((int(_NETWORK.network_address) + (number << 8), 24))


def _mac(host: Host) -> str:
    """One that is locally administered, and no other host's."""
    return ":".join(f"{octet:02x}" for octet in b"\x02\x00" + host.public_ip.packed)
