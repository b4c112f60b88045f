# C types for coalesce.py, which stays plain Python.

cimport cython
from flannelpy.packet cimport drops
from flannelpy.packet cimport headers as hdr
from flannelpy.packet.checksum cimport fold, ones_sum, wide_sum
from flannelpy.packet.ipv4 cimport check, ip_ttl, decrement_ttl
from flannelpy.packet.tally cimport Tally, count

cdef unsigned int _ALL_ONES


cdef class Coalescer:
    cdef object _buffers
    cdef unsigned char* _source_raw
    cdef unsigned char* _target_raw
    cdef const unsigned char[::1] _source_bytes
    cdef unsigned char[::1] _target_bytes
    cdef const unsigned int[::1] _source_words
    cdef object _source_view, _target_view
    cdef unsigned int _own, _own_mask, _broadcast
    # Where sources must lie, and in which of these subnets the last one did.
    cdef bint _any_source
    cdef list _subnets
    cdef unsigned int _network, _mask
    cdef bint _merge_tcp, _merge_udp, _merges
    cdef readonly list packets, refused
    # When the batch was received, and what was refused of the train that is being added.
    cdef double _now
    cdef Py_ssize_t _refused_packets, _refused_bytes
    # The item being built: its first packet, how many it has, where it lies once it has more than one.
    cdef Py_ssize_t _start, _stop, _count, _header, _gso_size, _built_at, _end
    cdef bint _complete, _verified, _built

    cpdef void begin(self, double now=*)

    cpdef void allow_sources(self, subnets)

    @cython.locals(accepted=cython.Py_ssize_t)
    cpdef void add(self, Py_ssize_t start, Py_ssize_t end, Py_ssize_t segment_size, Tally tally=*)

    @cython.locals(stop=cython.Py_ssize_t)
    cdef void _add_datagrams(self, Py_ssize_t start, Py_ssize_t end, Py_ssize_t segment_size)

    cpdef void finish(self)

    @cython.locals(reason=cython.int)
    cdef void _add_datagram(self, Py_ssize_t start, Py_ssize_t stop)

    @cython.locals(source=cython.uint, destination=cython.uint)
    cdef int _misdirected(self, Py_ssize_t start)

    @cython.locals(network=cython.uint, mask=cython.uint)
    cdef bint _expected(self, unsigned int source)

    @cython.locals(header=cython.Py_ssize_t)
    cdef void _add_packet(self, Py_ssize_t start, Py_ssize_t stop)

    @cython.locals(header=cython.Py_ssize_t)
    cdef Py_ssize_t _mergeable(self, Py_ssize_t start, Py_ssize_t stop) noexcept

    @cython.locals(header=cython.Py_ssize_t)
    cdef Py_ssize_t _tcp_header(self, Py_ssize_t start, Py_ssize_t stop) noexcept

    cdef Py_ssize_t _udp_header(self, Py_ssize_t start, Py_ssize_t stop) noexcept

    cdef bint _ends(self, Py_ssize_t start, Py_ssize_t stop) noexcept

    @cython.locals(size=cython.Py_ssize_t)
    cdef bint _continues(self, Py_ssize_t start, Py_ssize_t stop, Py_ssize_t header) noexcept

    cdef Py_ssize_t _payload(self) noexcept

    @cython.locals(head=cython.Py_ssize_t, identification=cython.uint)
    cdef bint _same_flow(self, Py_ssize_t start) noexcept

    @cython.locals(l4=cython.Py_ssize_t, pseudo=cython.ulonglong)
    cdef bint _checksums_right(self, Py_ssize_t start, Py_ssize_t stop) noexcept

    @cython.locals(addresses=cython.ulonglong)
    cdef unsigned int _pseudo_header_sum(self, Py_ssize_t start, Py_ssize_t l4_length) noexcept

    @cython.locals(size=cython.Py_ssize_t)
    cdef void _append(self, Py_ssize_t start, Py_ssize_t stop) noexcept

    cdef void _close(self)

    cdef bint _is_tcp(self) noexcept

    @cython.locals(at=cython.Py_ssize_t, length=cython.Py_ssize_t, pseudo=cython.uint)
    cdef void _finish_headers(self) noexcept


cdef unsigned int _get16(const unsigned char* data, Py_ssize_t at) noexcept

cdef unsigned int _get32(const unsigned char* data, Py_ssize_t at) noexcept

cdef void _put16(unsigned char* data, Py_ssize_t at, unsigned int value) noexcept

@cython.locals(i=cython.Py_ssize_t)
cdef bint _equal(
    const unsigned char* data, Py_ssize_t one, Py_ssize_t other, Py_ssize_t start, Py_ssize_t end
) noexcept

cdef void _copy(
    unsigned char[::1] target, Py_ssize_t at, const unsigned char[::1] source, Py_ssize_t start, Py_ssize_t length
) noexcept
