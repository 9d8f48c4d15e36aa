import cython

from smtpraft.consensus.progress cimport Inflights, Progress


cdef class Tracker:
    cdef str _self_id
    cdef object _max_inflight_messages
    cdef object _max_inflight_bytes
    cdef public object membership
    cdef public dict progress
    cdef public tuple peers
    cdef public dict votes
    cdef tuple _incoming
    cdef tuple _outgoing

    cpdef reset(self, unsigned long long last_index)
    @cython.locals(index="unsigned long long", matched=list, progress=Progress)
    cpdef unsigned long long committed_index(self) except? 0
