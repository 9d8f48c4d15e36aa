from smtpraft.consensus.messages cimport Message
from smtpraft.consensus.raftlog cimport RaftLog
from smtpraft.consensus.tracker cimport Tracker


cdef class Raft:
    cdef public object config
    cdef public object id
    cdef public object random
    cdef public object snapshot_provider
    cdef public object election
    cdef public object log
    cdef public RaftLog raftlog
    cdef public Tracker tracker
    cdef public object superseded
    cdef public object stamp
    cdef public bint barred
    cdef public object lease_held
    cdef public long long promised_ticks
    cdef public bint handed_over
    cdef public unsigned long long abstains_through
    cdef public bint stranger
    cdef public bint needed
    cdef public unsigned long long term
    cdef public object vote
    cdef public object role
    cdef public dict handlers
    cdef public object leader_id
    cdef public object transferee
    cdef public unsigned long long pending_conf_index
    cdef public long long uncommitted_bytes
    cdef public object reads
    cdef public list postponed_reads
    cdef public bint reads_to_confirm
    cdef public long long election_elapsed
    cdef public long long heartbeat_elapsed
    cdef public long long timeout_ticks
    cdef public list messages
    cdef public dict unsent_appends
    cdef public list after_append
    cdef public list read_states
    cdef unsigned long long _scanned_index
    cdef unsigned long long _scanned_conf_index

    cpdef tick(self)
    cpdef bint conf_change_unapplied(self) except -1
    cpdef become_follower(self, unsigned long long term, object leader_id)
    cpdef become_pre_candidate(self)
    cpdef become_candidate(self, unsigned long long term)
    cpdef become_leader(self)
    cdef _enter(self, object role)
    cpdef reset(self, unsigned long long term)
    cpdef send(self, Message message)
    cpdef forward(self, Message message)
    cpdef send_after_append(self, Message message)
    cpdef acknowledge(self, object to, unsigned long long index)
    cpdef leaving(self, unsigned long long first, unsigned long long last)
    cpdef step(self, Message message)
    cpdef promise(self)
    cdef bint _step_higher(self, Message message) except -1
    cdef _step_lower(self, Message message)
    cpdef stored(self, Message message)
    cpdef applied(self, unsigned long long index)
    cdef _applied_more(self)
    cdef _membership_changed(self)
