from smtpraft.consensus.messages cimport Message
from smtpraft.consensus.raft cimport Raft

cpdef _on_append(Raft raft, Message message)
cpdef handle_append(Raft raft, Message message)
cdef _check_committed(Raft raft, Message message)
cdef unsigned long long _store(Raft raft, Message message) except? 0
cdef _append_block(Raft raft, object block, unsigned long long first)
cpdef _on_heartbeat(Raft raft, Message message)
cpdef handle_heartbeat(Raft raft, Message message)
