"""Tells whether the rules of nftables, which iptables-nft uses too, may have changed in this network namespace.

Source: NFT_MSG_GETGEN in include/uapi/linux/netfilter/nf_tables.h, and nf_tables_getgen in the kernel.
"""

from __future__ import annotations

import shutil
import socket
import struct

from flannelpy.linux import iptables, kernel_modules
from flannelpy.rtnetlink.messages import Message, attributes, decode, encode

_NETFILTER = 12  # NETLINK_NETFILTER
_GETGEN, _NEWGEN = 10 << 8 | 16, 10 << 8 | 15  # NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_…
_GEN_ID = 1  # NFTA_GEN_ID
_NLM_F_REQUEST = 0x1
# struct nfgenmsg { __u8 nfgen_family, version; __be16 res_id; }
_HEADER = struct.Struct("=BBH")
_NUMBER = struct.Struct("!I")
_BUFFER = 1 << 12


def current() -> object | None:
    """Return a value that each counted change of a rule changes; None if the kernel counts not all of them.

    Two more changes are in the value: those of interfaces, since a rule may name one by its index, and those of the
    commands that list rules.  The kernel does not count the changes of iptables-legacy.  It also does not count what
    ends by itself: a table with an owner that has ended, and an element of a map with a timeout.
    """
    if iptables.has_legacy_tables() or not kernel_modules.may_be_loaded("nf_tables"):
        return None
    try:
        number = _ask()
        return None if number is None else (number, socket.if_nameindex(), iptables.programs(), shutil.which("nft"))
    except OSError:
        return None


def _ask() -> int | None:
    """Return the answer of the kernel, which comes at once; None if it has no nf_tables.  Raises OSError."""
    request = Message(_GETGEN, _HEADER.pack(0, 0, 0), _NLM_F_REQUEST)
    flags = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, flags, _NETFILTER) as kernel:
        kernel.send(encode(request, 1))
        for _, answer in decode(kernel.recv(_BUFFER)):
            number = attributes(answer.body, _HEADER.size).get(_GEN_ID, b"")
            if answer.message_type == _NEWGEN and len(number) == _NUMBER.size:
                return int(_NUMBER.unpack(number)[0])
    return None
