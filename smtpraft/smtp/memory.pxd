cdef class MemoryBudget:
    cdef public long long bytes_max
    cdef public long long used_bytes
    cdef object _begun
    cdef object _new

    cpdef bint try_reserve(self, long long size_bytes, bint begun=*) except -1
    cpdef release(self, long long size_bytes)
    cdef bint _fits(self, long long size_bytes) except -1
    cdef _serve(self)
