# C types for checksum.py, which stays plain Python.

cimport cython

cdef bint _LITTLE_ENDIAN

@cython.locals(total=cython.ulonglong, i=cython.Py_ssize_t, last=cython.Py_ssize_t)
cpdef unsigned int ones_sum(const unsigned char* data, Py_ssize_t start, Py_ssize_t end) noexcept

@cython.locals(total=cython.ulonglong, i=cython.Py_ssize_t, first=cython.Py_ssize_t, last=cython.Py_ssize_t)
cpdef unsigned int wide_sum(
    const unsigned char* data, const unsigned int[::1] words, Py_ssize_t start, Py_ssize_t end
) noexcept

cpdef unsigned int fold(unsigned long long total) noexcept

cdef unsigned int _swapped(unsigned long long total) noexcept
