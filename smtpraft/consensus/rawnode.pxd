# What the compiled half knows of the types in rawnode.py; the plain one does not read it.

import cython

from smtpraft.consensus cimport leader
from smtpraft.consensus.messages cimport EntryRange, Message, Output, new_message
from smtpraft.consensus.raft cimport Raft
from smtpraft.consensus.raftlog cimport RaftLog


cdef class RawNode:
    cdef public Raft raft
    cdef public str id
    cdef public object log
    cdef object _conf_of
    cdef object _conf_state
    cdef bint _async
    cdef str _last_leader
    cdef object _last_role
    cdef unsigned long long _last_term
    cdef str _last_vote
    cdef unsigned long long _last_commit
    cdef list _on_advance
    cdef bint _advance_due

    cpdef step(self, Message message)
    @cython.locals(raft=Raft, raftlog=RaftLog)
    cpdef bint has_ready(self) except -1
    @cython.locals(
        raft=Raft,
        raftlog=RaftLog,
        output=Output,
        entries=EntryRange,
        committed=EntryRange,
        must_sync="bint",
        messages=list,
        after_append=list,
        own=list,
        message=Message,
    )
    cpdef Output ready(self)
    @cython.locals(raft=Raft, commit="unsigned long long")
    cdef _hard_state_if_changed(self)
    @cython.locals(raftlog=RaftLog, message=Message)
    cdef Message _storage_append(self, EntryRange entries, object hard_state, object snapshot, list responses)
    @cython.locals(raftlog=RaftLog, message=Message)
    cdef Message _storage_append_response(self, object snapshot)


@cython.locals(message=Message)
cdef Message _storage_apply(str node, EntryRange committed)
@cython.locals(message=Message)
cdef Message _storage_apply_response(str node, EntryRange committed)
