"""The eBPF fast path of the udp backend: loads the programs, keeps their maps and filters, reads their counters.

Two programs carry what the loop would carry, to the byte, and leave everything unusual to it: ``outgoing`` at the
egress of the TUN, ``incoming`` at the ingress of the external interface.  Their checks are in
``datapath/fast_path/checks.py``.  The filters stay when this process ends, until the deadline is over.

The order at the start: ``open``; ``set`` for the peers and ``extend``; ``attach``.  Until ``attach``, programs that an
earlier process left stay at work; ``attach`` swaps each in one step.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import NamedTuple

from flannelpy.backend.attachment import Attachment
from flannelpy.backend.udp.fast_path_peers import Peers
from flannelpy.backend.udp.gro_pair import GroPair
from flannelpy.bpf.assembler import Program
from flannelpy.datapath.fast_path import golden, gro, incoming, maps, outgoing
from flannelpy.datapath.fast_path.checks import Check, Incoming, Outgoing
from flannelpy.datapath.fast_path.parts import ETH_HEADER, LICENSE, TC_ACT_REDIRECT, Constants
from flannelpy.datapath.routes import Totals
from flannelpy.datapath.source_check import SourceCheck
from flannelpy.errors import HostError
from flannelpy.linux.bpf import BpfMap, BpfProgram
from flannelpy.linux.netlink.client import Netlink
from flannelpy.rtnetlink.filters import Hook

# Source: ip_default_ttl in Documentation/networking/ip-sysctl.rst of the kernel.
_TTL_FILE, _DEFAULT_TTL = Path("/proc/sys/net/ipv4/ip_default_ttl"), 64
# Programs at the GRO pair, and the devices into which their packets go: the other ends.
_GRO_DEVICES = {"gro": maps.GRO, "cut": maps.CUT}
_CHECKS: Mapping[str, type[Check]] = {"outgoing": Outgoing, "incoming": Incoming}


class FastPathConfig(NamedTuple):
    """What does not change while a network runs.

    ``subnet``: our own; ``network``: that of all subnets; ``bound``, ``port``: address and port of our socket;
    ``device``, ``external``: names of the TUN and of the external interface; ``alias``: that of the TUN, which marks
    the filters and the GRO pair as ours.
    """

    subnet: IPv4Network
    network: IPv4Network
    bound: IPv4Address
    port: int
    source_check: SourceCheck
    device: str
    external: str
    alias: str


class FastPath:
    """The programs, maps and filters of one network."""

    def __init__(self, config: FastPathConfig) -> None:
        self._config = config
        self._constants = Constants(config.subnet, config.bound, config.port, config.source_check, _DEFAULT_TTL)
        self._gro_pair = GroPair(config.device, config.alias)
        self._places = {
            "outgoing": Attachment(config.device, Hook.EGRESS, config.alias),
            "incoming": Attachment(config.external, Hook.INGRESS, config.alias),
            "cut": Attachment(self._gro_pair.ends[0], Hook.INGRESS, config.alias),
            "gro": Attachment(self._gro_pair.ends[1], Hook.INGRESS, config.alias),
        }
        self._attached: set[str] = set()
        self._maps: dict[str, BpfMap] = {}
        self._programs: dict[str, BpfProgram] = {}
        self._deadline = 0.0
        self._may_send = True
        self._external_index = self._tun_index = 0

    async def open(self, netlink: Netlink) -> None:
        """Load the programs, test them with golden packets, set up the GRO pair; the TUN must exist.

        The packets of the overlay stay with the loop, or with the programs of an earlier process, until ``attach``.
        Raises HostError with the reason for which this host has no fast path; then nothing new is left.
        """
        try:
            for name, kind in maps.MAPS.items():
                self._maps[name] = BpfMap(name, kind)
            self._constants = self._constants._replace(ttl=_default_ttl())
            self._load("outgoing", outgoing.program(self._constants))
            self._peers = Peers(self._maps)
            await self._find_devices(netlink)
            self._test()
            await self._set_up_gro(netlink)
        except BaseException:
            self.release()
            with suppress(HostError):
                await self._gro_pair.remove(netlink)
            raise

    async def attach(self, netlink: Netlink) -> None:
        """Attach the incoming program, then the outgoing one, in place of those of an earlier process.

        Also attaches the outgoing program again after ``close_outgoing``.
        Raises HostError, also if a filter of another program comes first.
        """
        await self._refuse_obstacles(netlink)
        for name in ("incoming", "outgoing"):
            await self._attach(netlink, name)

    def set(self, subnet: IPv4Network, public_ip: IPv4Address, *, in_kernel: bool) -> None:
        """Carry packets to and from the peer that leases ``subnet``, or leave them to the loop.

        ``in_kernel``: whether its lease says that it decapsulates in the kernel.  Give all peers: a peer of the loop
        may lease a part of another peer's subnet.  Takes some microseconds.  A peer for which the maps have no space
        stays with the loop.  Raises HostError.
        """
        self._peers.set(subnet, public_ip, in_kernel=in_kernel)

    def remove(self, subnet: IPv4Network) -> None:
        """Forget the peer that leases ``subnet``, if it was set; its tally goes to ``removed_tally``.

        Raises HostError.
        """
        self._peers.remove(subnet)

    def extend(self, deadline: float) -> None:
        """Let the programs carry packets until ``deadline``, in seconds since boot (CLOCK_BOOTTIME).

        Before the first call they carry nothing.  ``float("inf")``: without an end, for a reservation.
        Raises HostError.
        """
        self._deadline = deadline
        self._write_settings()

    def allow_sending(self, *, is_allowed: bool) -> None:
        """Have the outgoing program leave each packet to the loop from the next one on, or end that.

        The incoming program is not affected.  Takes some microseconds.  Raises HostError.
        """
        self._may_send = is_allowed
        self._write_settings()

    def tally(self, subnet: IPv4Network) -> Totals | None:
        """Return what the programs carried to and from that peer, or None if it is not set.

        ``heard_at`` is a time of CLOCK_MONOTONIC, as that of the loop's tallies.  Takes some microseconds.
        Raises HostError.
        """
        return self._peers.tally(subnet)

    @property
    def removed_tally(self) -> Totals:
        """Return what the programs carried for peers that were removed."""
        return self._peers.removed

    def counts(self) -> Mapping[str, int]:
        """Return how many packets each check left to the loop, by ``outgoing`` or ``incoming`` and its name.

        Checks without any are missing.  Raises HostError.
        """
        return {
            f"{direction}_{check.label}": number
            for direction in _CHECKS
            for check, number in self._left(direction).items()
        }

    async def close_outgoing(self, netlink: Netlink) -> None:
        """Detach the outgoing program: the loop sends from now on.  Raises HostError."""
        await self._detach(netlink, "outgoing")

    async def close(self, netlink: Netlink) -> None:
        """Detach both programs, and remove the GRO pair and all else that was added.  Raises HostError."""
        await self._detach(netlink, "outgoing")
        await self._detach(netlink, "incoming")
        self._attached.clear()
        await self._gro_pair.remove(netlink)
        self.release()

    def release(self) -> None:
        """Leave the programs at work without this process, until the deadline; the object is not used after that."""
        for one in (*self._programs.values(), *self._maps.values()):
            one.close()

    async def flaws(self, netlink: Netlink) -> list[str]:
        """Return what other programs changed, as phrases of the log: ``eth1 lost the incoming program``.

        Raises HostError.
        """
        found = [*await self._obstacles(netlink), *await self._gro_pair.flaws(netlink)]
        tun = await netlink.link(self._config.device)
        if tun and tun.index != self._tun_index:
            found.append(f"{tun.name} was recreated, and the incoming program does not know it")
        for name in sorted(self._attached):
            place = self._places[name]
            attached = await place.attached_program(netlink)
            if attached != self._programs[name].id and await netlink.link(place.interface):
                found.append(f"{place.interface} lost the {name} program")
        return found

    async def repair(self, netlink: Netlink) -> None:
        """Restore what ``flaws`` names, also for a TUN or external interface that was recreated.

        Raises HostError, also if a filter of another program comes first: the loop must carry the packets then.
        """
        await self._refuse_obstacles(netlink)
        await self._find_devices(netlink)
        await self._set_up_gro(netlink)
        for name in sorted(self._attached - _GRO_DEVICES.keys()):
            if await self._places[name].attached_program(netlink) != self._programs[name].id:
                await self._attach(netlink, name)

    def _write_settings(self) -> None:
        # No way leads to interface 0, so all packets have another way than that which the outgoing program may use.
        external = self._external_index if self._may_send else 0
        self._maps["settings"].set(maps.index_key(0), maps.settings(self._deadline, external))

    async def _obstacles(self, netlink: Netlink) -> list[str]:
        """Return what may keep packets from the programs, as phrases of the log.  Raises HostError."""
        found = [await self._places[direction].obstacle(netlink) for direction in _CHECKS]
        return list(filter(None, found))

    async def _refuse_obstacles(self, netlink: Netlink) -> None:
        if obstacles := await self._obstacles(netlink):
            raise HostError(obstacles[0])

    def _load(self, name: str, program: Program) -> None:
        """Load a program in place of another one, which works on where it is attached.  Raises HostError."""
        if name in self._programs:
            self._programs[name].close()
        self._programs[name] = BpfProgram(f"flannel_{name}", program, self._maps, LICENSE)

    async def _find_devices(self, netlink: Netlink) -> None:
        """Tell the programs the indices of TUN and external interface.  Raises HostError."""
        tun, external = await netlink.link(self._config.device), await netlink.link(self._config.external)
        if tun is None or external is None:
            raise HostError(f"{(self._config.external if tun else self._config.device)} is gone")
        if not external.mac:
            raise HostError(f"{external.name} has no Ethernet header")
        self._tun_index, self._external_index = tun.index, external.index
        self._maps["devices"].set(maps.index_key(maps.TUN), maps.index_key(tun.index))
        self.extend(self._deadline)

    async def _set_up_gro(self, netlink: Netlink) -> None:
        """Set up the pair, and attach programs that know the TUN.  Raises HostError."""
        ends = await self._gro_pair.set_up(netlink)
        for name in _GRO_DEVICES:
            self._load(name, gro.program(self._tun_index))
            await self._attach(netlink, name)
        for number, end in zip(_GRO_DEVICES.values(), ends, strict=True):
            self._maps["devices"].set(maps.index_key(number), maps.index_key(end.index))

    async def _attach(self, netlink: Netlink, name: str) -> None:
        await self._places[name].attach(netlink, self._programs[name].fd)
        self._attached.add(name)

    async def _detach(self, netlink: Netlink, name: str) -> None:
        self._attached.discard(name)
        await self._places[name].detach(netlink)

    def _left(self, direction: str) -> dict[Check, int]:
        return maps.left(self._maps[f"left_{direction}"].get(maps.index_key(0)) or b"", _CHECKS[direction])

    def _test(self) -> None:
        """Run both programs on a packet of a peer that does not exist.  Raises HostError."""
        peer = next(
            IPv4Network(address)
            for address in (self._config.network[0], self._config.network[-1], IPv4Address("192.0.2.1"))
            if address not in self._config.subnet
        )
        public_ip = self._config.bound + (-1 if int(self._config.bound) & 1 else 1)
        self._peers.set(peer, public_ip, in_kernel=True)
        self.extend(float("inf"))
        try:
            self._load_incoming(golden.incoming(self._constants, peer, public_ip))
            self._expect("outgoing", golden.outgoing(self._constants, peer, public_ip))
        finally:
            self.extend(0.0)
            self._peers.remove(peer)
            self._peers.removed = Totals()
            for direction in _CHECKS:
                self._clear_counts(direction)

    def _load_incoming(self, packet: golden.Golden) -> None:
        """Load the program that the kernel can run, and test it.  Raises HostError."""
        for forgets in (True, False):
            self._load("incoming", incoming.program(self._constants, forgets_encapsulation=forgets))
            self._programs["incoming"].test_run(packet.packet)
            is_refused = list(self._left("incoming")) == [Incoming.REFUSED]
            self._clear_counts("incoming")
            if not is_refused:
                break
        self._expect("incoming", packet)

    def _clear_counts(self, direction: str) -> None:
        self._maps[f"left_{direction}"].clear(maps.index_key(0))

    def _expect(self, direction: str, packet: golden.Golden) -> None:
        """Raise HostError if the program makes something else of the packet.

        If the underlay has no route to that peer, or the kernel does not forward yet because Docker starts later, the
        end of the outgoing program remains untested.
        """
        result, made = self._programs[direction].test_run(packet.packet)
        left = list(self._left(direction))
        if left in ([Outgoing.OTHER_WAY], [Outgoing.NOT_FORWARDING]):
            return
        if result != TC_ACT_REDIRECT or made[ETH_HEADER:] != packet.result:
            cause = left[0].label if left else f"result {result}, {made.hex()}"
            raise HostError(f"the {direction} BPF program fails its test: {cause}")


def _default_ttl() -> int:
    """Return the TTL of our socket's datagrams; the usual one if the kernel does not tell it."""
    try:
        return int(_TTL_FILE.read_text())
    except (OSError, ValueError):
        return _DEFAULT_TTL
