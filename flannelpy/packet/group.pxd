# C types for group.py, which stays plain Python.

cimport cython
from flannelpy.packet cimport drops
from flannelpy.packet cimport headers as hdr
from flannelpy.packet.checksum cimport fold, wide_sum
from flannelpy.packet.ipv4 cimport check, destination, ip_ttl, source, decrement_ttl

cdef bint _LITTLE_ENDIAN


cdef class Grouper:
    cdef object _buffers
    cdef unsigned char* _raw
    cdef const unsigned char* _vnet_raw
    cdef const unsigned int[::1] _words
    cdef unsigned int _own, _own_mask, _bound, _port
    # The datagram of ours whose later fragments are to follow.
    cdef bint _refuses_fragments
    cdef unsigned int _destination_cut, _id_cut
    cdef readonly list groups, refused
    # The groups being built; _size 0 is none.
    cdef unsigned int _destination, _subnet
    cdef Py_ssize_t _start, _end, _size, _gso
    cdef bint _full

    @cython.locals(start=cython.Py_ssize_t, header=cython.Py_ssize_t, length=cython.Py_ssize_t)
    cpdef void group(self, list lengths, unsigned int mask)

    cpdef void decrement_ttls(self, Py_ssize_t start, Py_ssize_t end, Py_ssize_t segment_size) noexcept

    @cython.locals(gso_size=cython.Py_ssize_t, reason=cython.int, address=cython.uint, length=cython.Py_ssize_t)
    cdef void _take(self, Py_ssize_t header, Py_ssize_t start, Py_ssize_t end, unsigned int mask)

    @cython.locals(
        address=cython.uint, fragment=cython.uint, l4=cython.Py_ssize_t, found=cython.bint
    )
    cdef bint _is_own_datagram(self, Py_ssize_t start, Py_ssize_t end) noexcept

    cdef bint _follows(self, Py_ssize_t start) noexcept

    @cython.locals(behind=cython.Py_ssize_t)
    cdef bint _fits(self, Py_ssize_t start, Py_ssize_t length, unsigned int subnet, Py_ssize_t gso_size) noexcept

    cdef void _close(self)

    @cython.locals(gso_type=cython.uint)
    cdef Py_ssize_t _gso_size(self, Py_ssize_t header, Py_ssize_t start) noexcept

    @cython.locals(
        l4=cython.Py_ssize_t, offset=cython.Py_ssize_t, field=cython.Py_ssize_t, checksum=cython.uint
    )
    cdef bint _finish_checksum(self, Py_ssize_t header, Py_ssize_t start, Py_ssize_t end) noexcept


cdef unsigned int _get16(const unsigned char* data, Py_ssize_t at) noexcept

cdef unsigned int _host16(const unsigned char* data, Py_ssize_t at) noexcept
