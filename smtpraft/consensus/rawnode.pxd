from smtpraft.consensus.messages cimport Message
from smtpraft.consensus.raft cimport Raft


cdef class RawNode:
    cdef public Raft raft
    cdef public object id
    cdef public object log
    cdef object _conf_of
    cdef object _conf_state
    cdef bint _async
    cdef object _last_soft
    cdef object _last_hard
    cdef list _on_advance
    cdef bint _advance_due

    cpdef step(self, Message message)
    cpdef bint has_ready(self) except -1
    cpdef ready(self)
    cdef Message _storage_append(self, object entries, object hard_state, object snapshot, list responses)
    cdef Message _storage_append_response(self, object snapshot)
