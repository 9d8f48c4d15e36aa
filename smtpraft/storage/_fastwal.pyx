# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: autotestdict=False, auto_pickle=False
"""The log's writing thread without Python: plain batches are formed, written and synced with no GIL.

The plain twin is `writer.WalWriter` with `Wal.write`: the same bytes in the same order. What is not plain (a new
segment, a new promise, a job, an error) stops the pump, and Python does it; see `fastwriter`.
"""

from __future__ import annotations

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset
from posix.unistd cimport read

__all__ = ["CLOSED", "IDLE", "SLOW", "SYNC_FAILED", "WRITE_FAILED", "Batch", "Pump"]

cdef extern from "pthread.h" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)
    int pthread_cond_signal(pthread_cond_t *)

cdef extern from "_fastwal.h" nogil:
    enum:
        RUN_CLOSED, RUN_IDLE, RUN_SLOW, RUN_WRITE_FAILED, RUN_SYNC_FAILED, WAL_VOTE, WAL_IOVECS
    ctypedef struct wal_batch:
        wal_batch *next
        void *owner
        uint64_t first, last, first_term, last_term, entries_bytes
        uint32_t *ends
        size_t ends_count
        int span_count, has_hard_state, vote_length, sync, slow
        uint64_t term, commit
        char vote[64]
        double since_s, took_s, synced_s
        uint64_t position, size_bytes
    ctypedef struct wal_pump:
        pthread_mutex_t queue, state
        pthread_cond_t given
        int event_fd
        wal_batch *waiting
        wal_batch *waiting_last
        wal_batch *current
        wal_batch *done
        wal_batch *done_last
        int closing, idle_told
        uint64_t pending_bytes
        double done_s
        int fd
        uint64_t salt, segment_bytes, end_offset, number, durable, floor, first_index, last_index, last_term
        uint64_t term, commit, reserve_bytes
        uint32_t crc
        int vote_length, error
        char vote[64]
    double wal_now()
    int wal_pump_begin(wal_pump *)
    void wal_pump_end(wal_pump *)
    int wal_batch_add(wal_batch *, const uint8_t *, size_t)
    void wal_batch_end(wal_batch *)
    void wal_finish(wal_pump *)
    int wal_pump_run(wal_pump *, double)

CLOSED = RUN_CLOSED
IDLE = RUN_IDLE
SLOW = RUN_SLOW
WRITE_FAILED = RUN_WRITE_FAILED
SYNC_FAILED = RUN_SYNC_FAILED


cdef class Batch:
    """What goes to the disk at once: submissions, in order. Complete when the pump hands it back."""

    cdef wal_batch c
    cdef Py_buffer *views
    cdef Py_ssize_t view_count, view_room
    cdef readonly list dones
    """Of each submission, what to call."""
    cdef readonly object hard_state, job
    cdef list held
    cdef list more
    cdef readonly uint64_t first_index, last_index
    """As they were submitted."""
    cdef public bint told
    """Does the log know of it?"""

    def __cinit__(self):
        memset(&self.c, 0, sizeof(self.c))
        self.c.owner = <void *>self
        self.dones = []
        self.held = []
        self.more = []
        self.views = NULL

    def __dealloc__(self):
        cdef Py_ssize_t at
        for at in range(self.view_count):
            PyBuffer_Release(&self.views[at])
        free(self.views)
        wal_batch_end(&self.c)

    @property
    def spans(self):
        """The bytes of its entries, in order."""
        cdef list found = list(self.held)
        cdef Batch other
        for other in self.more:
            found += other.held
        return found

    @property
    def sync(self):
        """Does one of them want to be durable?"""
        return bool(self.c.sync)

    @property
    def written(self):
        """Did the pump write it, and not Python?"""
        return self.c.size_bytes != 0

    @property
    def size_bytes(self):
        """Bytes of the whole batch."""
        return self.c.size_bytes

    @property
    def position(self):
        """Where its entries begin in the segment."""
        return self.c.position

    @property
    def end_offset(self):
        """Where it ends in the segment."""
        return self.c.position - 152 + self.c.size_bytes

    @property
    def ends(self):
        """Where each entry ends, from the first one on: u32 of this machine."""
        return PyBytes_FromStringAndSize(<char *>self.c.ends, <Py_ssize_t>(self.c.ends_count * sizeof(uint32_t)))

    @property
    def count(self):
        """How many entries it has."""
        return self.c.ends_count

    @property
    def took_s(self):
        """Seconds for writing and syncing."""
        return self.c.took_s

    @property
    def synced_s(self):
        """Seconds of that for the sync."""
        return self.c.synced_s

    cdef int hold(self, object spans) except -1:
        """Hold on to the bytes of entries."""
        cdef Py_buffer *room
        for span in spans:
            if self.view_count == self.view_room:
                room = <Py_buffer *>realloc(self.views, <size_t>(2 * self.view_room + 4) * sizeof(Py_buffer))
                if room == NULL:
                    raise MemoryError
                self.views = room
                self.view_room = 2 * self.view_room + 4
            PyObject_GetBuffer(span, &self.views[self.view_count], PyBUF_SIMPLE)
            self.view_count += 1
            self.held.append(span)
        return 0

    cdef void add(self, Batch other, uint64_t first, uint64_t last) noexcept:
        """Add the entries that `other`, maybe this one, holds on to. Allocates nothing that the collector knows."""
        cdef Py_ssize_t at
        for at in range(other.view_count):
            if not self.c.slow and wal_batch_add(
                &self.c, <const uint8_t *>other.views[at].buf, <size_t>other.views[at].len
            ) <= 0:
                self.c.slow = 1
        if not self.first_index:
            self.first_index = first
        self.last_index = last
        if self.c.first != self.first_index or self.c.last != last or self.c.span_count > WAL_IOVECS:
            self.c.slow = 1  # Python will say what is wrong, if anything is


cdef int _forget(wal_batch *batch) except -1:
    while batch != NULL:
        owner = <object>batch.owner
        batch = batch.next
        Py_DECREF(owner)
    return 0


cdef class Pump:
    """The batches of one log, and what its end looks like. `submit`, `drain` are for the loop; `run`, `finish` for the
    writing thread; `lock_state`, `unlock_state` for whoever writes to the log by other means.
    """

    cdef wal_pump c
    cdef bint begun
    cdef uint64_t batch_bytes_max

    def __cinit__(self, uint64_t batch_bytes_max, uint64_t reserve_bytes):
        cdef int error = wal_pump_begin(&self.c)
        if error:
            raise OSError(error, "cannot make an eventfd")
        self.begun = True
        self.batch_bytes_max = batch_bytes_max
        self.c.reserve_bytes = reserve_bytes

    def __dealloc__(self):
        if self.begun:
            self.c.fd = -1
            _forget(self.c.waiting)
            _forget(self.c.current)
            _forget(self.c.done)
            wal_pump_end(&self.c)

    def fileno(self):
        """The descriptor that is readable when batches are done."""
        return self.c.event_fd

    # ------------------------------------------------------------------------------------------------------- the loop

    def submit(self, spans, uint64_t first_index, uint64_t last_index, hard_state, bint sync, done, job=None):
        """Give entries, hard state or a job; see `WalWriter.submit`. It goes with what waits, if it continues that.

        Raises:
            ValueError: a vote that is too long.
        """
        # Nothing that the garbage collector knows is made under the lock: a collection may run anything, and let another
        # thread run, and that must not wait for the lock while it has the GIL.
        cdef Batch mine = Batch()
        cdef Batch batch
        cdef wal_batch *last
        cdef uint64_t size = 0, before
        cdef Py_ssize_t at, vote_length = 0
        cdef const char *vote_bytes = NULL
        cdef bytes vote
        cdef bint fits
        mine.hold(spans)
        for at in range(mine.view_count):
            size += <uint64_t>mine.views[at].len
        if hard_state is not None:
            vote = hard_state.vote.encode()
            vote_length = len(vote)
            vote_bytes = <const char *>vote
            if vote_length > WAL_VOTE:
                raise ValueError(f"the vote {hard_state.vote!r} is longer than {WAL_VOTE} bytes")
            mine.c.term = hard_state.term
            mine.c.commit = hard_state.commit
        pthread_mutex_lock(&self.c.queue)
        last = self.c.waiting_last
        fits = last != NULL and job is None and not last.slow
        if fits and size:
            fits = not last.last or (
                first_index == last.last + 1
                and last.entries_bytes + size <= self.batch_bytes_max
                and last.span_count + mine.view_count < WAL_IOVECS
            )
        batch = <Batch>last.owner if fits else mine
        before = batch.c.entries_bytes
        if size:
            batch.add(mine, first_index, last_index)
            if fits:
                batch.more.append(mine)
        if vote_bytes != NULL:
            batch.hard_state = hard_state
            batch.c.has_hard_state = 1
            batch.c.term = mine.c.term
            batch.c.commit = mine.c.commit
            batch.c.vote_length = <int>vote_length
            memcpy(batch.c.vote, vote_bytes, <size_t>vote_length)
        if sync:
            batch.c.sync = 1
        if job is not None:
            batch.job = job
            batch.c.slow = 1
        batch.dones.append(done)
        self.c.pending_bytes += batch.c.entries_bytes - before
        if not fits:
            batch.c.since_s = wal_now()
            Py_INCREF(batch)
            if last == NULL:
                self.c.waiting = &batch.c
            else:
                last.next = &batch.c
            self.c.waiting_last = &batch.c
            pthread_cond_signal(&self.c.given)
        pthread_mutex_unlock(&self.c.queue)

    def drain(self):
        """Return the batches that are done, in order."""
        cdef wal_batch *batch
        cdef uint64_t ignored
        cdef list found = []
        read(self.c.event_fd, &ignored, sizeof(ignored))  # first: what is done after the look must wake the loop again
        pthread_mutex_lock(&self.c.queue)
        batch = self.c.done
        self.c.done = self.c.done_last = NULL
        pthread_mutex_unlock(&self.c.queue)
        while batch != NULL:
            owner = <object>batch.owner
            batch = batch.next
            found.append(owner)
            Py_DECREF(owner)
        return found

    def written(self):
        """Return the batches that are on the disk, in order, and not drained yet. Under the state's lock."""
        cdef wal_batch *batch
        cdef list found = []
        pthread_mutex_lock(&self.c.queue)
        batch = self.c.done
        while batch != NULL:
            found.append(<object>batch.owner)
            batch = batch.next
        if self.c.current != NULL and self.c.current.size_bytes:
            found.append(<object>self.c.current.owner)
        pthread_mutex_unlock(&self.c.queue)
        return found

    @property
    def pending_bytes(self):
        """Bytes of entries that are not done."""
        return self.c.pending_bytes

    def write_age_s(self):
        """For how long there has been something to write and nothing got done; 0 if there is nothing."""
        cdef double since = 0
        pthread_mutex_lock(&self.c.queue)
        if self.c.current != NULL:
            since = self.c.current.since_s
        elif self.c.waiting != NULL:
            since = self.c.waiting.since_s
        if since and since < self.c.done_s:
            since = self.c.done_s
        pthread_mutex_unlock(&self.c.queue)
        return wal_now() - since if since else 0.0

    def close(self):
        """Have `run` end when all that was given is done."""
        pthread_mutex_lock(&self.c.queue)
        self.c.closing = 1
        pthread_cond_signal(&self.c.given)
        pthread_mutex_unlock(&self.c.queue)

    # -------------------------------------------------------------------------------------------- the writer's thread

    def run(self, double idle_s):
        """Write until Python is needed; return why: CLOSED, IDLE, or for `current` SLOW, WRITE_FAILED, SYNC_FAILED."""
        cdef int result
        with nogil:
            result = wal_pump_run(&self.c, idle_s)
        return result

    def ask_again(self):
        """Have `run` say IDLE again, though it has since it wrote last."""
        self.c.idle_told = 0  # of the thread that runs

    @property
    def current(self):
        """The batch that needs Python."""
        return <object>self.c.current.owner

    def finish(self):
        """Python has done it."""
        wal_finish(&self.c)

    @property
    def error(self):
        """The errno of what failed."""
        return self.c.error

    # ------------------------------------------------------------------------------------------------ the log's end

    def lock_state(self):
        """Return when no batch is being written, and none will be before `unlock_state`."""
        with nogil:
            pthread_mutex_lock(&self.c.state)

    def unlock_state(self):
        """See `lock_state`."""
        pthread_mutex_unlock(&self.c.state)

    @property
    def writes(self):
        """Does it know the log's end?"""
        return self.c.fd >= 0

    def state(self):
        """Return (end offset, number, durable, crc, last term, commit), under the lock."""
        return self.c.end_offset, self.c.number, self.c.durable, self.c.crc, self.c.last_term, self.c.commit

    def set_state(
        self,
        int fd,
        uint64_t salt,
        uint64_t segment_bytes,
        uint64_t end_offset,
        uint64_t number,
        uint64_t durable,
        uint64_t floor,
        uint64_t first_index,
        uint64_t last_index,
        uint64_t last_term,
        uint32_t crc,
        hard_state,
    ):
        """Say what the log's end looks like, under the lock. `fd` -1: the pump may not write."""
        cdef bytes vote = hard_state.vote.encode()
        self.c.fd = fd
        self.c.salt = salt
        self.c.segment_bytes = segment_bytes
        self.c.end_offset = end_offset
        self.c.number = number
        self.c.durable = durable
        self.c.floor = floor
        self.c.first_index = first_index
        self.c.last_index = last_index
        self.c.last_term = last_term
        self.c.crc = crc
        self.c.term = hard_state.term
        self.c.commit = hard_state.commit
        self.c.vote_length = <int>len(vote)
        memcpy(self.c.vote, <const char *>vote, len(vote))
