import cython

from smtpraft.consensus cimport follower, leader
from smtpraft.consensus.messages cimport EntryRange, Message, new_message
from smtpraft.consensus.raftlog cimport RaftLog
from smtpraft.consensus.tracker cimport Tracker


cdef class Raft:
    cdef public object config
    cdef public bint as_reference
    cdef public bint lease_reads
    cdef public unsigned long long max_append_bytes
    cdef public str id
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
    cdef public str vote
    cdef public object role
    cdef public dict handlers
    cdef public str leader_id
    cdef public str transferee
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
    cpdef send(self, Message message)
    cpdef send_after_append(self, Message message)
    @cython.locals(last=Message, message=Message)
    cpdef acknowledge(self, str to, unsigned long long index)
    @cython.locals(message=Message, entries=EntryRange)
    cpdef leaving(self, unsigned long long first, unsigned long long last)
    cpdef step(self, Message message)
    cpdef promise(self)
    cdef bint _step_higher(self, Message message) except -1
    cdef _step_lower(self, Message message)
    cpdef stored(self, Message message)
    @cython.locals(payload_bytes="long long")
    cpdef applied(self, unsigned long long index)
    cdef _applied_more(self)
