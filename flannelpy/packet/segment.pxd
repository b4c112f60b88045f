# C types for segment.py, which stays plain Python.

cimport cython
from flannelpy.packet cimport headers as hdr
from flannelpy.packet.checksum cimport fold, ones_sum, wide_sum

cdef unsigned int _ALL_ONES


cdef class Segmenter:
    cdef object _buffers
    cdef unsigned char* _source_raw
    cdef unsigned char* _target_raw
    cdef const unsigned char[::1] _source_bytes
    cdef unsigned char[::1] _target_bytes
    cdef const unsigned int[::1] _source_words
    cdef Py_ssize_t _target_size

    @cython.locals(header=cython.Py_ssize_t, payload=cython.Py_ssize_t, count=cython.Py_ssize_t)
    cpdef Py_ssize_t segment(self, Py_ssize_t start, Py_ssize_t end, Py_ssize_t gso_size, Py_ssize_t at) noexcept

    @cython.locals(ip_header=cython.Py_ssize_t, tcp_header=cython.Py_ssize_t)
    cpdef Py_ssize_t header_length(self, Py_ssize_t start) noexcept

    @cython.locals(
        l4=cython.Py_ssize_t,
        header=cython.Py_ssize_t,
        length=cython.Py_ssize_t,
        identification=cython.uint,
        is_tcp=cython.bint,
        sequence=cython.uint,
        flags=cython.uint,
        dropped_flags=cython.uint,
        ip_sum=cython.ulonglong,
        l4_sum=cython.ulonglong,
        total=cython.ulonglong,
    )
    cdef Py_ssize_t _segment(
        self, Py_ssize_t start, Py_ssize_t payload, Py_ssize_t end, Py_ssize_t gso_size, Py_ssize_t at
    ) noexcept

    cdef void _clear(self, Py_ssize_t ip, Py_ssize_t l4, bint is_tcp) noexcept

    cdef unsigned int _pseudo_header_sum(self, Py_ssize_t start) noexcept

    cdef void _finish_ip(
        self, Py_ssize_t at, unsigned int total_length, unsigned int identification, unsigned long long ip_sum
    ) noexcept

    cdef void _finish_tcp(
        self, Py_ssize_t at, unsigned int sequence, unsigned int flags, unsigned long long total
    ) noexcept

    @cython.locals(checksum=cython.uint)
    cdef void _finish_udp(self, Py_ssize_t at, unsigned int length, unsigned long long total) noexcept


cdef unsigned int _get16(const unsigned char* data, Py_ssize_t at) noexcept

cdef void _put16(unsigned char* data, Py_ssize_t at, unsigned int value) noexcept

cdef void _copy(
    unsigned char[::1] target, Py_ssize_t at, const unsigned char[::1] source, Py_ssize_t start, Py_ssize_t length
) noexcept
