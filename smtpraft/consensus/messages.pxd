# What the compiled half knows of the types in messages.py; the plain one does not read it.

cdef class Message:
    cdef public object type
    cdef public object to
    cdef public object sender
    cdef public unsigned long long term
    cdef public unsigned long long log_term
    cdef public unsigned long long index
    cdef public unsigned long long commit
    cdef public object vote
    cdef public bint reject
    cdef public unsigned long long reject_hint
    cdef public object context
    cdef public object entries
    cdef public object block
    cdef public object payloads
    cdef public object snapshot
    cdef public object responses
