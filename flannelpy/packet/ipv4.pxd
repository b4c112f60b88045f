# C types for ipv4.py, which stays plain Python.

cimport cython

cdef Py_ssize_t _TOTAL_LENGTH, _TTL, _CHECKSUM, _SOURCE, _DESTINATION, _MIN_HEADER
cdef int _TRUNCATED, _NOT_IPV4, _BAD_HEADER, _BAD_LENGTH

@cython.locals(length=cython.Py_ssize_t, header=cython.Py_ssize_t)
cpdef int check(const unsigned char* data, Py_ssize_t start, Py_ssize_t end) noexcept

cpdef unsigned int source(const unsigned char* data, Py_ssize_t start) noexcept

cpdef unsigned int destination(const unsigned char* data, Py_ssize_t start) noexcept

cpdef int ip_ttl(const unsigned char* data, Py_ssize_t start) noexcept

@cython.locals(checksum=cython.uint)
cpdef void decrement_ttl(unsigned char* data, Py_ssize_t start) noexcept

cdef unsigned int _word(const unsigned char* data, Py_ssize_t at) noexcept
