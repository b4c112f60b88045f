# C types for ipv4.py, which stays plain Python.

cimport cython
from flannelpy.packet.checksum cimport update

cdef Py_ssize_t _TOTAL_LENGTH, _TTL, _CHECKSUM, _SOURCE, _DESTINATION, _MIN_HEADER
cdef int _TRUNCATED, _NOT_IPV4, _BAD_HEADER, _BAD_LENGTH

@cython.locals(length=cython.Py_ssize_t, header=cython.Py_ssize_t)
cpdef int check(const unsigned char[::1] data, Py_ssize_t start, Py_ssize_t end)

cpdef unsigned int source(const unsigned char[::1] data, Py_ssize_t start)

cpdef unsigned int destination(const unsigned char[::1] data, Py_ssize_t start)

cpdef int ip_ttl(const unsigned char[::1] data, Py_ssize_t start)

@cython.locals(word=cython.uint, checksum=cython.uint)
cpdef void take_hop(unsigned char[::1] data, Py_ssize_t start)

cdef unsigned int _word(const unsigned char[::1] data, Py_ssize_t at)
