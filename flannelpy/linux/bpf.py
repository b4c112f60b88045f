"""Maps and programs of the kernel: the system call bpf.

Source: bpf(2), union bpf_attr in include/uapi/linux/bpf.h of the kernel.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

from flannelpy.bpf.assembler import Program
from flannelpy.bpf.map_kind import MapKind
from flannelpy.errors import HostError

_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _PROG_LOAD, _PROG_TEST_RUN = 0, 1, 2, 3, 5, 10
_MAP_GET_NEXT_KEY, _PROG_GET_FD_BY_ID, _MAP_GET_FD_BY_ID, _OBJ_GET_INFO_BY_FD = 4, 13, 14, 15
# The number of the system call; newer architectures share one.
_NUMBERS = {"x86_64": 321, "i686": 357, "armv7l": 386, "ppc64": 361, "ppc64le": 361, "s390x": 351}
_SHARED_NUMBER = 280

_PROG_TYPE_SCHED_CLS = 3
_ANY, _NOEXIST = 0, 1
_NAME_BYTES = 15

# The members of union bpf_attr that a command uses, from its start.
_CREATE = struct.Struct("=5I8x16s")
_ELEMENT = struct.Struct("=I4xQQQ")
_LOAD = struct.Struct("=IIQQIIQII16s")
_TEST_RUN = struct.Struct("=IIIIQQIIIIQQ")
_TEST_RESULT, _TEST_SIZE = struct.Struct("=4xi"), struct.Struct("=12xI")

_INFO = struct.Struct("=IIQ")
# struct bpf_prog_info { __u32 type, id; … }
_PROG_INFO = struct.Struct("=4xI")
# { …; __u32 nr_map_ids; __aligned_u64 map_ids; … }
_PROG_MAPS = struct.Struct("=52xIQ")
# struct bpf_map_info { __u32 type, id, key_size, value_size, max_entries, map_flags; char name[16]; … }
_MAP_INFO = struct.Struct("=8xI12x16s")
_BY_ID = struct.Struct("=I8x")
# MAX_USED_MAPS in include/linux/bpf_verifier.h of the kernel.
_MOST_MAPS = 64

_LOG_BYTES = 1 << 16
_OUT_BYTES = 1 << 16
# struct __sk_buff up to gso_size, with gso_segs before it.
_CONTEXT = struct.Struct("=164xI8xI")
_POSSIBLE = Path("/sys/devices/system/cpu/possible")

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_number = ctypes.c_long(_NUMBERS.get(platform.machine(), _SHARED_NUMBER))


class Descriptor:
    """The descriptor of an object of the kernel, which lives until the last reference to it is gone."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        """Close the descriptor, unless it is closed."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class BpfMap(Descriptor):
    """A map.  Keys and values are bytes of the lengths that its kind gives."""

    def __init__(self, name: str, kind: MapKind) -> None:
        """Create the map.  Raises HostError."""
        self._name = name
        copies = _possible_processors() if kind.per_cpu else 1
        self._key = ctypes.create_string_buffer(kind.key_size)
        self._value = ctypes.create_string_buffer(kind.value_size * copies)
        super().__init__(_create(name, kind))

    def set(self, key: bytes, value: bytes) -> bool:
        """Put a value; return False if the map is full.  Raises HostError."""
        self._value.raw = value
        return not self._call(_MAP_UPDATE, key, _ANY, (errno.E2BIG, errno.ENOSPC))

    def add_zero(self, key: bytes) -> bool:
        """Put zeros, unless there is a value; return False if the map is full.  Raises HostError."""
        self._value.raw = bytes(len(self._value))
        return self._call(_MAP_UPDATE, key, _NOEXIST, (errno.EEXIST, errno.E2BIG)) != errno.E2BIG

    def clear(self, key: bytes) -> None:
        """Put zeros in place of a value.  Raises HostError."""
        self.set(key, bytes(len(self._value)))

    def remove(self, key: bytes) -> None:
        """Remove a value, if it is there.  Raises HostError."""
        self._call(_MAP_DELETE, key, 0, (errno.ENOENT,))

    def get(self, key: bytes) -> bytes | None:
        """Return the value, None without one; of a map per processor, the values of all.  Raises HostError."""
        return None if self._call(_MAP_LOOKUP, key, 0, (errno.ENOENT,)) else self._value.raw

    def _call(self, command: int, key: bytes, flags: int, harmless: tuple[int, ...]) -> int:
        """Return 0, or the errno if it is harmless.  Raises HostError."""
        self._key.raw = key
        value = 0 if command == _MAP_DELETE else ctypes.addressof(self._value)
        attributes = _ELEMENT.pack(self.fd, ctypes.addressof(self._key), value, flags)
        try:
            _bpf(command, ctypes.create_string_buffer(attributes, _ELEMENT.size))
        except OSError as error:
            if error.errno in harmless:
                return error.errno or 0
            raise HostError(f"the kernel refused a change of the BPF map {self._name}: {error.strerror}") from error
        return 0


class TestRun(NamedTuple):
    """What a program made of a packet: its result, and the packet from the link header on."""

    result: int
    packet: bytes


class BpfProgram(Descriptor):
    """A program for tc."""

    def __init__(self, name: str, program: Program, maps: Mapping[str, BpfMap], licence: bytes) -> None:
        """Load the program.  Raises HostError with the verifier's last words."""
        self._name = name
        self._out = ctypes.create_string_buffer(_OUT_BYTES)
        code = program.encode({name: one.fd for name, one in maps.items()})
        try:
            super().__init__(_load(name, code, licence, None))
        except OSError as error:
            log = ctypes.create_string_buffer(_LOG_BYTES)
            with suppress(OSError):  # the log costs time, so only a second attempt asks for it
                os.close(_load(name, code, licence, log))
            raise HostError(_refused(f"program {name}", error, _last_words(log.value))) from error

    @cached_property
    def id(self) -> int:
        """The number by which the kernel lists the program.  Raises HostError."""
        try:
            info = _info(self.fd, bytes(_PROG_INFO.size))
        except OSError as error:
            raise HostError(_refused(f"query of the program {self._name}", error)) from error
        return int(_PROG_INFO.unpack(info)[0])

    def test_run(self, packet: bytes, gso_size: int = 0) -> TestRun:
        """Run the program on a packet with an Ethernet header, which no interface sends.  Raises HostError.

        ``gso_size``: the payload bytes per segment of a super-packet, or 0.
        """
        given = ctypes.create_string_buffer(packet, len(packet))
        context = ctypes.create_string_buffer(_CONTEXT.pack(1, gso_size), _CONTEXT.size) if gso_size else None
        attributes = ctypes.create_string_buffer(
            _TEST_RUN.pack(
                *(self.fd, 0, len(packet), _OUT_BYTES, ctypes.addressof(given), ctypes.addressof(self._out)),
                *(1, 0, _CONTEXT.size if context else 0, 0, ctypes.addressof(context) if context else 0, 0),
            ),
            _TEST_RUN.size,
        )
        try:
            _bpf(_PROG_TEST_RUN, attributes)
        except OSError as error:
            raise HostError(_refused(f"test of the program {self._name}", error)) from error
        size = _TEST_SIZE.unpack_from(attributes)[0]
        return TestRun(_TEST_RESULT.unpack_from(attributes)[0], ctypes.string_at(self._out, size))


def keys_of_map(program: int, name: str) -> Iterator[bytes]:
    """Yield the keys of the map of that name which a program uses; none without such a map.

    ``program``: the number by which the kernel lists it; another process may have loaded it.
    Nothing may change the map meanwhile.  Raises HostError, also without CAP_SYS_ADMIN.
    """
    try:
        for number in _map_numbers(program):
            with _by_id(_MAP_GET_FD_BY_ID, number) as fd:
                key_size, found = _MAP_INFO.unpack(_info(fd, bytes(_MAP_INFO.size)))
                if found.rstrip(b"\0") == name.encode():
                    yield from _keys(fd, key_size)
    except OSError as error:
        raise HostError(f"the kernel does not show the maps of BPF program {program}: {error.strerror}") from error


def _map_numbers(program: int) -> list[int]:
    """Return the numbers by which the kernel lists the maps of a program.  Raises OSError."""
    numbers = (ctypes.c_uint32 * _MOST_MAPS)()
    with _by_id(_PROG_GET_FD_BY_ID, program) as fd:
        info = _info(fd, _PROG_MAPS.pack(len(numbers), ctypes.addressof(numbers)))
    return numbers[: _PROG_MAPS.unpack(info)[0]]


@contextmanager
def _by_id(command: int, number: int) -> Iterator[int]:
    """Open a program or map by the number by which the kernel lists it.  Raises OSError."""
    fd = _bpf(command, ctypes.create_string_buffer(_BY_ID.pack(number), _BY_ID.size))
    try:
        yield fd
    finally:
        os.close(fd)


def _info(fd: int, request: bytes) -> bytes:
    """Return what the kernel makes of the first bytes of a program's or a map's description.  Raises OSError."""
    info = ctypes.create_string_buffer(request, len(request))
    attributes = _INFO.pack(fd, len(info), ctypes.addressof(info))
    _bpf(_OBJ_GET_INFO_BY_FD, ctypes.create_string_buffer(attributes, _INFO.size))
    return info.raw


def _keys(fd: int, size: int) -> Iterator[bytes]:
    """Yield the keys of a map.  Raises OSError."""
    key, following = ctypes.create_string_buffer(size), ctypes.create_string_buffer(size)
    before = 0
    while True:
        attributes = _ELEMENT.pack(fd, before, ctypes.addressof(following), 0)
        try:
            _bpf(_MAP_GET_NEXT_KEY, ctypes.create_string_buffer(attributes, _ELEMENT.size))
        except FileNotFoundError:
            return
        key.raw = following.raw
        before = ctypes.addressof(key)
        yield key.raw


def _bpf(command: int, attributes: ctypes.Array[ctypes.c_char]) -> int:
    """Call the kernel, which may change ``attributes``.  Raises OSError."""
    result = int(_syscall(_number, ctypes.c_int(command), attributes, ctypes.c_uint(len(attributes))))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _create(name: str, kind: MapKind) -> int:
    """Return the descriptor of a new map.  Raises HostError."""
    sizes = kind.type, kind.key_size, kind.value_size, kind.entries, kind.flags
    attributes = ctypes.create_string_buffer(_CREATE.pack(*sizes, name.encode()[:_NAME_BYTES]), _CREATE.size)
    try:
        try:
            return _bpf(_MAP_CREATE, attributes)
        except PermissionError:
            _lift_memory_limit()
            return _bpf(_MAP_CREATE, attributes)
    except OSError as error:
        raise HostError(_refused(f"map {name}", error)) from error


def _lift_memory_limit() -> None:
    """Have the kernel before 5.11 count no map against the limit of locked memory, whose default is too low."""
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _load(name: str, code: bytes, licence: bytes, log: ctypes.Array[ctypes.c_char] | None) -> int:
    """Return the descriptor of a loaded program; ``log``: gets the verifier's.  Raises OSError."""
    instructions = ctypes.create_string_buffer(code, len(code))
    licensed = ctypes.create_string_buffer(licence)
    logging = (1, len(log), ctypes.addressof(log)) if log is not None else (0, 0, 0)
    attributes = _LOAD.pack(
        *(_PROG_TYPE_SCHED_CLS, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(licensed)),
        *logging,
        *(0, 0, name.encode()[:_NAME_BYTES]),
    )
    return _bpf(_PROG_LOAD, ctypes.create_string_buffer(attributes, _LOAD.size))


def _refused(what: str, error: OSError, detail: str = "") -> str:
    """Return why the kernel refused a BPF object."""
    hint = "; it needs CAP_BPF, and the system call bpf" if error.errno in (errno.EPERM, errno.ENOSYS) else ""
    return f"the kernel refused the BPF {what}: {error.strerror}{f' ({detail})' if detail else ''}{hint}"


def _last_words(log: bytes) -> str:
    """Return the line of the verifier's log that names the cause; the last lines are statistics."""
    lines = [line for line in log.decode(errors="replace").splitlines() if line.strip()]
    causes = [line for line in lines if not line.startswith(("processed ", "verification time", "stack depth"))]
    return causes[-1].strip() if causes else ""


@cache
def _possible_processors() -> int:
    """Return for how many processors the kernel keeps values: 4 for ``0-3``.  Raises HostError."""
    try:
        last = _POSSIBLE.read_text().strip().replace("-", ",").rpartition(",")[2]
        return int(last) + 1
    except (OSError, ValueError) as error:
        raise HostError(f"cannot read the number of processors from {_POSSIBLE}: {error}") from error
