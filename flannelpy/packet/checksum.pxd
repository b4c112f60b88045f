# C types for checksum.py, which stays plain Python.

cimport cython

@cython.locals(total=cython.ulonglong, i=cython.Py_ssize_t, last=cython.Py_ssize_t)
cpdef unsigned int ones_sum(const unsigned char[::1] data, Py_ssize_t start, Py_ssize_t end)

cpdef unsigned int fold(unsigned long long total)

cpdef unsigned int update(unsigned int checksum, unsigned int old, unsigned int new)
