# What the compiled half knows of the types in follower.py, for what comes in every turn; the plain one does not read it.

import cython

from smtpraft.consensus.messages cimport Message
from smtpraft.consensus.raft cimport Raft
from smtpraft.consensus.raftlog cimport RaftLog

cpdef on_append(Raft raft, Message message)
@cython.locals(raftlog=RaftLog, prev="unsigned long long", last="unsigned long long")
cpdef handle_append(Raft raft, Message message)
@cython.locals(raftlog=RaftLog, first="unsigned long long")
cdef unsigned long long _store(Raft raft, Message message) except? 0
cdef _append_block(Raft raft, object block, unsigned long long first)
cpdef _on_heartbeat(Raft raft, Message message)
cpdef handle_heartbeat(Raft raft, Message message)
