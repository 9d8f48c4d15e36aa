import cython

from smtpraft.consensus.messages cimport EntryRange, entry_range


cdef class RaftLog:
    cdef public object log
    cdef public unsigned long long last_index
    cdef public unsigned long long last_term
    cdef public unsigned long long commit_index
    cdef public unsigned long long applying_index
    cdef public unsigned long long applied_index
    cdef public unsigned long long stable_index
    cdef public unsigned long long handed_index
    cdef public object snapshot
    cdef public bint snapshot_handed
    cdef unsigned long long _max_apply_bytes
    cdef object _applying
    cdef unsigned long long _applying_bytes
    cdef bint _apply_paused

    cpdef cut(self, unsigned long long first)
    cpdef restore(self, object snapshot)
    cpdef moved(self)
    @cython.locals(last="unsigned long long")
    cpdef EntryRange next_entries(self)
    cpdef handed_out(self)
    cpdef stable_to(self, unsigned long long index, unsigned long long term)
    cpdef snapshot_stored(self, unsigned long long index)
    cpdef commit_to(self, unsigned long long index)
    cdef unsigned long long _appliable_index(self, bint allow_unstable) except? 0
    cpdef bint has_committed(self, bint allow_unstable) except -1
    @cython.locals(first="unsigned long long", end="unsigned long long", last="unsigned long long", size="unsigned long long")
    cpdef EntryRange next_committed(self, bint allow_unstable)
    @cython.locals(
        payload_bytes="unsigned long long",
        last="unsigned long long",
        size="unsigned long long",
        payload="unsigned long long",
    )
    cpdef unsigned long long applied_to(self, unsigned long long index) except? 0
    cdef _applied(self, unsigned long long index)
