"""The peers that programs of an earlier process know, until this process has read the leases."""

from __future__ import annotations

import logging

from flannelpy.backend.left_programs import left_program_ids
from flannelpy.chunks import in_chunks
from flannelpy.errors import HostError
from flannelpy.linux.bpf import keys_of_map
from flannelpy.linux.netlink.client import Netlink
from flannelpy.netfilter.address_ranges import AddressRanges

log = logging.getLogger(__name__)

# Of datapath/fast_path/maps.py; only the incoming program uses it.
_SENDERS = "senders"


async def left_peers(netlink: Netlink, alias: str) -> AddressRanges | None:
    """Return the public IPs of the peers that left programs with this ``alias`` know.

    None if there are none, or if the kernel does not show them, as to a process without CAP_SYS_ADMIN.
    """
    addresses: list[int] = []
    try:
        for number in await left_program_ids(netlink, alias):
            async for keys in in_chunks(keys_of_map(number, _SENDERS)):
                addresses += map(int.from_bytes, keys)
    except HostError as error:
        log.debug("Peers of an earlier process stay unknown: %s", error)
        return None
    return AddressRanges((address, address) for address in addresses) if addresses else None
