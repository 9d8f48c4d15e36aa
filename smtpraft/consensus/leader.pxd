# What the compiled half knows of the types in leader.py, for what comes in every turn; the plain one does not read it.

import cython

from smtpraft.consensus.messages cimport EntryRange, Message, entry_range, new_message
from smtpraft.consensus.progress cimport Progress
from smtpraft.consensus.raft cimport Raft
from smtpraft.consensus.raftlog cimport RaftLog

cpdef propose(Raft raft, object payloads)
cdef _check_open(Raft raft)
cdef _reserve(Raft raft, long long payload_bytes)
cpdef append(Raft raft, object kind, object payloads)
@cython.locals(progress=Progress)
cpdef broadcast_append(Raft raft)
@cython.locals(
    first="unsigned long long",
    last="unsigned long long",
    size="unsigned long long",
    commit="unsigned long long",
    prev_term="unsigned long long",
    message=Message,
    unsent=Message,
    raftlog=RaftLog,
)
cpdef bint maybe_send_append(Raft raft, Progress progress, bint if_empty) except -1
@cython.locals(start="unsigned long long", end="unsigned long long")
cdef bint _join(
    Raft raft,
    Message unsent,
    unsigned long long first,
    unsigned long long last,
    unsigned long long size,
    unsigned long long commit,
) except -1
@cython.locals(index="unsigned long long", raftlog=RaftLog)
cpdef bint maybe_commit(Raft raft) except -1
cdef bint _confirms_probe(Raft raft, Progress progress, unsigned long long index) except -1
cdef _release_postponed_reads(Raft raft)
@cython.locals(progress=Progress, index="unsigned long long", own="bint")
cpdef on_append_response(Raft raft, Message message)
cpdef tick(Raft raft)
@cython.locals(progress=Progress, commit_index="unsigned long long", commit="unsigned long long")
cpdef broadcast_heartbeat(Raft raft)
@cython.locals(progress=Progress)
cpdef _on_heartbeat_response(Raft raft, Message message)
