from smtpraft.consensus.messages cimport Message
from smtpraft.consensus.progress cimport Progress
from smtpraft.consensus.raft cimport Raft

cpdef propose(Raft raft, object payloads)
cdef _check_open(Raft raft)
cdef _reserve(Raft raft, long long payload_bytes)
cpdef append(Raft raft, object kind, object payloads)
cpdef broadcast_append(Raft raft)
cpdef bint maybe_send_append(Raft raft, Progress progress, bint if_empty) except -1
cdef bint _join(Raft raft, Message unsent, unsigned long long first, unsigned long long last, unsigned long long size, unsigned long long commit) except -1
cdef bint _maybe_send_snapshot(Raft raft, Progress progress) except -1
cpdef bint maybe_commit(Raft raft) except -1
cdef bint _confirms_probe(Raft raft, Progress progress, unsigned long long index) except -1
cpdef _on_append_response(Raft raft, Message message)
cpdef tick(Raft raft)
cdef bint _check_quorum(Raft raft) except -1
cpdef broadcast_heartbeat(Raft raft)
cpdef _on_heartbeat_response(Raft raft, Message message)
cpdef _on_read_index(Raft raft, Message message)
cdef _release_postponed_reads(Raft raft)
