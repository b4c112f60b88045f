# C types for tally.py, which stays plain Python.

cdef class Tally:
    cdef readonly long long packets_out, bytes_out, packets_in, bytes_in
    cdef readonly double heard_at

    cpdef void sent(self, Py_ssize_t length, Py_ssize_t segment_size) noexcept

    cpdef void accepted(self, Py_ssize_t packets, Py_ssize_t length, double now) noexcept


cpdef Py_ssize_t count(Py_ssize_t length, Py_ssize_t segment_size) noexcept
