"""The XFRM policies of this network namespace, by which IPsec protects or blocks packets, and their changes.

Source: include/uapi/linux/xfrm.h and net/xfrm/xfrm_user.c of the kernel.
"""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from errno import EBADMSG, EINVAL, ENOBUFS

from flannelpy.rtnetlink.messages import Message, attributes, decode, encode, error_of

_XFRM = 6  # NETLINK_XFRM
_GROUP_POLICY = 1 << 3  # XFRMNLGRP_POLICY
_GETSPDINFO, _GETDEFAULT = 0x25, 0x28  # XFRM_MSG_…
_SPD_INFO = 1
_NLM_F_REQUEST = 0x1
# __u32 flags
_FLAGS = struct.Struct("=I")
# struct xfrmu_spdinfo { __u32 incnt, outcnt, fwdcnt, inscnt, outscnt, fwdscnt; }, the last three of sockets
_COUNTS = struct.Struct("=6I")
# struct xfrm_userpolicy_default { __u8 in, fwd, out; }
_DEFAULTS = struct.Struct("=3B")
_BLOCK = 1  # XFRM_USERPOLICY_BLOCK
_BUFFER = 1 << 14


def _open(groups: int) -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, _XFRM)
    try:
        opened.bind((0, groups))
    except OSError:
        opened.close()
        raise
    return opened


class XfrmPolicies:
    """A subscription to all changes of policies, and a socket to ask for them.

    The answers come at once, so no method waits.
    """

    def __init__(self) -> None:
        """Raise OSError: EPROTONOSUPPORT if the kernel has no XFRM, EPERM without CAP_NET_ADMIN."""
        self._requests = _open(0)
        try:
            self._changes = _open(_GROUP_POLICY)
        except OSError:
            self._requests.close()
            raise
        self._sequence = 0

    def fileno(self) -> int:
        """Return the descriptor that is readable after a change."""
        return self._changes.fileno()

    def discard_changes(self) -> None:
        """Read all notifications, which are not needed: ``found`` asks for the present state."""
        with suppress(BlockingIOError):
            while True:
                try:
                    self._changes.recv(_BUFFER)
                except OSError as error:
                    if error.errno != ENOBUFS:  # after more changes than the buffer holds
                        raise

    def found(self) -> str:
        """Return which policies there are; empty without any.  Raises OSError."""
        if self._count():
            return "the kernel has XFRM policies (ip xfrm policy)"
        if _BLOCK in self._defaults():
            return "the default XFRM policy blocks packets (ip xfrm policy getdefault)"
        return ""

    def _count(self) -> int:
        """Return the number of policies of all directions, also those of single sockets."""
        answer = self._ask(Message(_GETSPDINFO, _FLAGS.pack(0)))
        counts = attributes(answer.body, _FLAGS.size).get(_SPD_INFO, b"")
        if error := error_of(answer):
            raise OSError(error, os.strerror(error))
        if len(counts) < _COUNTS.size:
            raise OSError(EBADMSG, os.strerror(EBADMSG))
        return sum(_COUNTS.unpack_from(counts))

    def _defaults(self) -> tuple[int, ...]:
        """Return what becomes of packets without a policy, by direction; before Linux 5.15 they pass."""
        answer = self._ask(Message(_GETDEFAULT, bytes(_DEFAULTS.size)))
        if (error := error_of(answer)) and error != EINVAL:
            raise OSError(error, os.strerror(error))
        return () if error else _DEFAULTS.unpack_from(answer.body)

    def _ask(self, request: Message) -> Message:
        self._sequence += 1
        self._requests.send(encode(request._replace(flags=_NLM_F_REQUEST), self._sequence))
        while True:
            for sequence, answer in decode(self._requests.recv(_BUFFER)):
                if sequence == self._sequence:
                    return answer

    def close(self) -> None:
        """Close both sockets."""
        self._changes.close()
        self._requests.close()
