# C types for ipv4.py, which stays plain Python.

cimport cython
from flannelpy.packet cimport drops
from flannelpy.packet cimport headers as hdr


@cython.locals(length=cython.Py_ssize_t, header=cython.Py_ssize_t)
cpdef int check(const unsigned char* data, Py_ssize_t start, Py_ssize_t end) noexcept

cpdef unsigned int source(const unsigned char* data, Py_ssize_t start) noexcept

cpdef unsigned int destination(const unsigned char* data, Py_ssize_t start) noexcept

cpdef int ip_ttl(const unsigned char* data, Py_ssize_t start) noexcept

@cython.locals(checksum=cython.uint)
cpdef void decrement_ttl(unsigned char* data, Py_ssize_t start) noexcept

cdef unsigned int _word(const unsigned char* data, Py_ssize_t at) noexcept
