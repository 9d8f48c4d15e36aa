# What the compiled half knows of the types in messages.py; the plain one does not read it.

import cython


# Freelists, and that the garbage collector knows of none of these: setup.py says it.

@cython.final
cdef class EntryRange:
    cdef readonly unsigned long long first
    cdef readonly unsigned long long last


@cython.locals(made=EntryRange)
cpdef EntryRange entry_range(unsigned long long first, unsigned long long last)


# Not for the garbage collector: a message holds values and other messages, and none of them holds it.
@cython.final
cdef class Message:
    cdef public object type
    cdef public str to
    cdef public str sender
    cdef public unsigned long long term
    cdef public unsigned long long log_term
    cdef public unsigned long long index
    cdef public unsigned long long commit
    cdef public str vote
    cdef public bint reject
    cdef public unsigned long long reject_hint
    cdef public object context
    cdef public EntryRange entries
    cdef public object block
    cdef public object payloads
    cdef public object snapshot
    cdef public object responses


@cython.locals(made=Message)
cpdef Message new_message(object type, str to, str sender, unsigned long long term)


@cython.final
cdef class Output:
    cdef public object soft_state
    cdef public object hard_state
    cdef public tuple read_states
    cdef public EntryRange entries
    cdef public object snapshot
    cdef public EntryRange committed
    cdef public tuple messages
    cdef public bint must_sync
