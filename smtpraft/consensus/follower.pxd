from smtpraft.consensus.messages cimport Message
from smtpraft.consensus.raft cimport Raft

cpdef _on_append(Raft raft, Message message)
cpdef handle_append(Raft raft, Message message)
cdef _check_committed(Raft raft, Message message)
cdef unsigned long long _store(Raft raft, Message message) except? 0
cdef _append_block(Raft raft, object block, unsigned long long first)
cpdef _on_heartbeat(Raft raft, Message message)
cpdef handle_heartbeat(Raft raft, Message message)
cpdef _on_snapshot(Raft raft, Message message)
cpdef handle_snapshot(Raft raft, Message message)
cdef bint _restore(Raft raft, object snapshot) except -1
cpdef _on_prop(Raft raft, Message message)
cpdef _pass_on(Raft raft, Message message)
cpdef _on_read_index_response(Raft raft, Message message)
cpdef _on_forget_leader(Raft raft, Message _message)
cpdef _on_timeout_now(Raft raft, Message _message)
cpdef _as_follower(Raft raft, Message message)
cpdef _drop(Raft _raft, Message _message)
cpdef _on_vote_response(Raft raft, Message message)
