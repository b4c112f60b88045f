"""What both the daemon and -cleanup build from the flags."""

from __future__ import annotations

import logging
from contextlib import suppress
from ipaddress import AddressValueError, IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

from flannelpy.backend.removal import Scope
from flannelpy.errors import HostError, UsageError
from flannelpy.linux import identity, interface
from flannelpy.linux.clock import BootClock
from flannelpy.linux.instance_lock import Run
from flannelpy.linux.interface import ExternalInterface, Wanted
from flannelpy.linux.interface_watch import Watch
from flannelpy.linux.marks import device_alias
from flannelpy.linux.netlink import Netlink
from flannelpy.options import Options
from flannelpy.registry.base import Registry
from flannelpy.registry.etcd_v2 import EtcdV2Registry, parse_endpoint
from flannelpy.subnet import env_file
from flannelpy.subnet.addresses import edges, special_use
from flannelpy.subnet.renewal import Holder

log = logging.getLogger(__name__)

# No config may have a larger network.
_MIN_NETWORK_LEN = 8


async def addresses(options: Options) -> tuple[ExternalInterface, IPv4Address]:
    """The external interface, and the public IP.  Raises HostError, UsageError."""
    async with Netlink() as netlink:
        external = await interface.find(netlink, _wanted(options), _previous_addresses(options))
        held = [IPv4Interface((one.address, one.prefix_len)) for one in await netlink.addresses()]
    log.info("Using %s as external interface", external.address)
    if external.other_holder:
        log.info("Packets leave by %s with the address %s of %s", external.name, external.address, external.holder)
    public_ip = options.public_ip or external.address
    if block := special_use(public_ip):
        raise HostError(f"{external.holder} has {public_ip}, in {block}: other hosts cannot reach it")
    for one in held:
        if options.public_ip in edges(one.network):
            raise UsageError(
                f"bad value '{public_ip}' for -public-ip: must be the address of a host; this one is the network or "
                f"broadcast address of {one.network}"
            )
    log.info("Using %s as external endpoint", public_ip)
    if public_ip != external.address:
        log.info(
            "No interface of this machine has the public IP %s: a NAT has to pass what other hosts send to it on to %s "
            "on %s",
            public_ip,
            external.address,
            external.holder,
        )
    return external, public_ip


def watch(options: Options, external: ExternalInterface) -> Watch:
    """What notices that ``external`` is no longer what these flags mean."""
    return Watch(external, _wanted(options), BootClock().now, _previous_addresses(options))


def _wanted(options: Options) -> Wanted:
    """The flags that the choice of the external interface depends on."""
    etcd = []
    for host in etcd_hosts(options):
        with suppress(AddressValueError):  # it is a name: the choice must not wait for a resolver
            etcd.append(IPv4Address(host))
    return Wanted(options.iface, options.iface_regex, options.iface_can_reach, options.public_ip, etcd)


def holder(options: Options, public_ip: IPv4Address) -> Holder:
    """Who we are to other hosts."""
    return Holder(public_ip, options.host_id or identity.host_id())


def registry(options: Options, network: str = "") -> Registry:
    """Where a network's leases are kept.  Raises UsageError, HostError."""
    return EtcdV2Registry(
        options.etcd_endpoints,
        f"{options.etcd_prefix}/{network}",
        keyfile=options.etcd_keyfile,
        certfile=options.etcd_certfile,
        cafile=options.etcd_cafile,
        username=options.etcd_username,
        password=options.etcd_password,
    )


def etcd_hosts(options: Options) -> list[str]:
    """The names and addresses in -etcd-endpoints."""
    return [parse_endpoint(endpoint).host for endpoint in options.etcd_endpoints]


def subnet_file(options: Options, network: str = "") -> Path:
    """Where a network's subnet is told."""
    return options.subnet_dir / f"{network}.env" if network else options.subnet_file


def ready_path(options: Options, network: str = "") -> Path:
    """The file that is there while a network is ready."""
    file = subnet_file(options, network)
    return file.with_name("ready" if not network and file.name == "subnet.env" else f"{file.name}.ready")


def scope(subnet_file: Path, last: Run | None, *held: tuple[IPv4Network, IPv4Network]) -> Scope:
    """What a subnet file owns, by its text, the last run's record, and ``held``: networks with a subnet of each."""
    pairs = [*held, *_previous(subnet_file)]
    networks = {network for network, _ in pairs}.union(filter(_is_possible, last.networks if last else ()))
    return Scope(device_alias(subnet_file), frozenset(networks), frozenset(tunnel_address(*pair) for pair in pairs))


def tunnel_address(network: IPv4Network, subnet: IPv4Network) -> IPv4Interface:
    """What a backend's device has as its address."""
    return IPv4Interface((subnet.network_address, network.prefixlen))


def _previous(subnet_file: Path) -> list[tuple[IPv4Network, IPv4Network]]:
    """Network and subnet of an earlier run, if the subnet file names both."""
    network, subnet = env_file.previous_network(subnet_file), env_file.previous_subnet(subnet_file)
    return [(network, subnet)] if network and subnet and _is_possible(network) else []


def _is_possible(network: IPv4Network) -> bool:
    """Earlier versions accepted networks such as 0.0.0.0/0: those would make everything ours."""
    return network.prefixlen >= _MIN_NETWORK_LEN


def _previous_addresses(options: Options) -> frozenset[IPv4Interface]:
    """Those that devices of earlier runs have."""
    files = [subnet_file(options, name) for name in options.networks or ("",)]
    return frozenset(tunnel_address(*pair) for file in files for pair in _previous(file))
