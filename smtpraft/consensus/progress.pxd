import cython


cdef class Inflights:
    cdef unsigned long long _max_messages
    cdef unsigned long long _max_bytes
    cdef object _sent
    cdef public unsigned long long size_bytes

    cpdef bint is_full(self) except -1
    cpdef add(self, unsigned long long last_index, unsigned long long size_bytes)
    @cython.locals(last="unsigned long long", size_bytes="unsigned long long")
    cpdef free_to(self, unsigned long long index)
    cpdef clear(self)


cdef class Progress:
    cdef public str id
    cdef public object state
    cdef public unsigned long long match_index
    cdef public unsigned long long next_index
    cdef public unsigned long long sent_commit
    cdef public bint recent_active
    cdef public bint flow_paused
    cdef public unsigned long long pending_snapshot
    cdef public bint is_learner
    cdef public Inflights inflights

    cpdef reset(self, unsigned long long last_index)
    cdef _enter(self, object state)
    cpdef become_probe(self)
    cpdef become_replicate(self)
    cpdef become_snapshot(self, unsigned long long index)
    cpdef sent(self, unsigned long long last_index, unsigned long long size_bytes)
    cpdef bint update(self, unsigned long long index) except -1
    cpdef bint decrease(self, unsigned long long rejected, unsigned long long match_hint) except -1
    cpdef bint can_bump_commit(self, unsigned long long index) except -1
