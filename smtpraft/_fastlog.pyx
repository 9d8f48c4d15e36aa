# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: autotestdict=False, auto_pickle=False
"""The hot paths, compiled: the same names, results and errors as `_purelog`, which specifies them.

Here the in-memory log; the codecs are in `_fastcodec.pxi` and `_fastcommands.pxi`, checksum and byte order in
`_fastlog.h`. There is no Python object per entry: `Log` keeps terms and sizes in C arrays and the bytes in the blocks
they came in. What parses or verifies bytes is C that cannot raise; its caller raises what it found. The GIL is kept
throughout: the longest call is the checksum of one block, which is shorter than waiting for the GIL back.
"""

from __future__ import annotations

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_Check, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_SIZE
from cpython.long cimport PyLong_AsUnsignedLongLong, PyLong_CheckExact
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memcpy, memmove

from operator import index as as_int

from smtpraft._logformat import (
    COMMANDS_MAX,
    COMMAND_HEADER_BYTES,
    COMMAND_TAG,
    ENTRY_BYTES_MAX,
    ENTRY_CONF_CHANGE,
    ENTRY_CONF_CHANGE_V2,
    ENTRY_HEADER_BYTES,
    ENTRY_NORMAL,
    FRAME_HEADER_BYTES,
    FRAME_HEARTBEAT,
    FRAME_HEARTBEAT_RESPONSE,
    FRAME_VERSION,
    INDEX_MAX,
    Compacted,
    CorruptEntry,
    CorruptFrame,
    NotCached,
    Unavailable,
)

__all__ = [
    "ENTRY_BYTES_MAX",
    "ENTRY_CONF_CHANGE",
    "ENTRY_CONF_CHANGE_V2",
    "ENTRY_HEADER_BYTES",
    "ENTRY_NORMAL",
    "FRAME_HEADER_BYTES",
    "FRAME_HEARTBEAT",
    "FRAME_HEARTBEAT_RESPONSE",
    "FRAME_VERSION",
    "INDEX_MAX",
    "Compacted",
    "CorruptEntry",
    "CorruptFrame",
    "FrameDecoder",
    "Log",
    "NotCached",
    "Unavailable",
    "block_range",
    "commands",
    "crc32c",
    "decode_entries",
    "decode_heartbeat",
    "decode_heartbeat_response",
    "encode_entries",
    "encode_frame",
    "encode_heartbeat",
    "encode_heartbeat_response",
    "proposed",
    "quorum_index",
    "survey",
]

include "_fastcodec.pxi"
include "_fastcommands.pxi"


cdef Py_ssize_t _above(const uint64_t *values, Py_ssize_t lo, Py_ssize_t hi, uint64_t limit) noexcept nogil:
    """Return the first position in lo..hi whose value is above `limit`; values never decrease."""
    cdef Py_ssize_t middle
    while lo < hi:
        middle = lo + (hi - lo) // 2
        if values[middle] > limit:
            hi = middle
        else:
            lo = middle + 1
    return lo


@cython.final
cdef class _Numbers:
    """A queue of u64 in one piece of memory: grows at the end, shrinks at both. `at` is its first live number."""

    cdef uint64_t *memory
    cdef uint64_t *at
    cdef Py_ssize_t count
    cdef Py_ssize_t capacity

    def __dealloc__(self):
        PyMem_Free(self.memory)

    cdef int reserve(self, Py_ssize_t more) except -1:
        """Make room for `more` numbers; nothing after this can fail."""
        cdef Py_ssize_t wanted = self.count + more
        cdef uint64_t *memory
        if (self.at - self.memory) + wanted <= self.capacity:
            return 0
        # Moving down is free on average only if at least as much dead space is gained as live numbers are moved.
        if self.memory == NULL or 2 * wanted > self.capacity or 8 * wanted < self.capacity:
            self.capacity = 2 * wanted + 32
            memory = <uint64_t *>PyMem_Malloc(self.capacity * sizeof(uint64_t))
            if memory == NULL:
                self.capacity = 0
                raise MemoryError
            if self.count:
                memcpy(memory, self.at, self.count * sizeof(uint64_t))
            PyMem_Free(self.memory)
            self.memory = memory
        else:
            memmove(self.memory, self.at, self.count * sizeof(uint64_t))
        self.at = self.memory
        return 0

    cdef inline void push(self, uint64_t number) noexcept:
        self.at[self.count] = number
        self.count += 1

    cdef inline void drop_first(self, Py_ssize_t count) noexcept:
        self.at += count
        self.count -= count


@cython.final
cdef class Log:
    """The in-memory log: terms and sizes of all entries, the bytes of the recent ones, in the blocks they came in."""

    cdef uint64_t _prev_index
    cdef uint64_t _prev_term
    cdef uint64_t _origin  # cumulative bytes before the first entry
    cdef _Numbers _terms
    cdef _Numbers _ends  # cumulative bytes up to the end of each entry
    cdef _Numbers _firsts  # first index of each block
    cdef list _blocks  # those before _head are None: forgotten
    cdef Py_ssize_t _head
    cdef bytes _verified  # by `match` just now; the same bytes need no second checksum

    def __init__(self, prev_index=0, prev_term=0):
        self._prev_index = 0
        self._prev_term = 0
        self._origin = 0
        self._terms = _Numbers()
        self._ends = _Numbers()
        self._firsts = _Numbers()
        self._blocks = []
        self._head = 0
        self._verified = None
        self.restore(prev_index, prev_term)

    # Facts.

    @property
    def prev_index(self):
        """The index before the first; 0 when the log goes back to the beginning."""
        return self._prev_index

    @property
    def prev_term(self):
        """The term of the entry at `prev_index`."""
        return self._prev_term

    @property
    def first_index(self):
        """`prev_index + 1`: the first entry here, if there is any."""
        return self._prev_index + 1

    @property
    def last_index(self):
        """The last entry here; `prev_index` when there is none."""
        return self._last()

    @property
    def last_term(self):
        """The term of the entry at `last_index`."""
        return self._term(self._last())

    @property
    def cached_first(self):
        """The lowest index whose bytes are in memory; `last_index + 1` if there is none."""
        return self._cached_first()

    @property
    def cached_bytes(self):
        """Bytes of the entries in memory."""
        return self._cached_bytes()

    cdef inline uint64_t _last(self) noexcept:
        return self._prev_index + <uint64_t>self._terms.count

    cdef inline uint64_t _end(self, uint64_t index) noexcept:
        """Cumulative bytes up to the end of the entry at `index`, which is in prev..last."""
        return self._origin if index == self._prev_index else self._ends.at[index - self._prev_index - 1]

    cdef inline uint64_t _term(self, uint64_t index) noexcept:
        return self._prev_term if index == self._prev_index else self._terms.at[index - self._prev_index - 1]

    cdef inline uint64_t _cached_first(self) noexcept:
        return self._firsts.at[0] if self._firsts.count else self._last() + 1

    cdef inline uint64_t _cached_bytes(self) noexcept:
        return self._end(self._last()) - self._end(self._cached_first() - 1)

    cdef int _check_range(self, uint64_t lo, uint64_t hi) except -1:
        if lo > hi and lo - hi > 1:
            raise ValueError(f"no range: {lo}..{hi}")
        if lo <= self._prev_index:
            raise self._compacted(lo)
        if hi > self._last():
            raise self._unavailable(hi)
        return 0

    cdef object _compacted(self, uint64_t index):
        return Compacted(f"index {index}, the log begins at {self._prev_index + 1}")

    cdef object _unavailable(self, uint64_t index):
        return Unavailable(f"index {index}, the log ends at {self._last()}")

    # Growing.

    def append(self, term, stamp, kind, payloads):
        """Encode `payloads` as entries after `last_index`, keep them, and return the block: the final bytes."""
        cdef uint64_t checked_term = _u64(term)
        cdef uint64_t checked_stamp = _u64(stamp)
        cdef uint8_t checked_kind = <uint8_t>_limited(kind, 0xFF)
        cdef list checked
        cdef Py_ssize_t count, number
        cdef uint64_t last = self._last()
        cdef uint64_t *terms
        cdef bytes block
        if checked_term < self._term(last):
            raise ValueError(f"term {checked_term} after {self._term(last)}")
        checked = _as_list(payloads)  # may run Python, if it is no list
        assert self._last() == last
        count = len(checked)
        self._terms.reserve(count)
        self._ends.reserve(count)
        self._firsts.reserve(1)
        block = _encode(
            checked_term, last + 1, checked_stamp, checked_kind, checked, self._ends.at + self._ends.count, self._end(last)
        )
        self._blocks.append(block)
        self._firsts.push(last + 1)
        terms = self._terms.at + self._terms.count
        for number in range(count):
            terms[number] = checked_term
        self._terms.count += count
        self._ends.count += count
        self._check()
        return block

    def match(self, block):
        """Compare a block with what is here: (first index that is missing or of another term, last of the block)."""
        cdef bytes checked = _as_bytes(block)
        cdef Range found
        cdef const uint8_t *p
        cdef uint64_t index
        cdef uint64_t last = self._last()
        _check_block(checked, &found)
        self._verified = checked
        if found.first_index > last:
            return found.first_index, found.last_index
        p = _start(checked)
        for index in range(found.first_index, found.last_index + 1):
            if index > self._prev_index and (index > last or self._term(index) != load_u64(p + 8)):
                return index, found.last_index
            p += load_u32(p + 4)
        return 0, found.last_index

    def append_block(self, block, from_index=0):
        """Replace all from the block's first entry, or from `from_index` if that is higher, by the block's entries."""
        cdef bytes checked = _as_bytes(block)
        cdef uint64_t first = _u64(from_index)
        cdef Range found
        cdef const uint8_t *p
        cdef const uint8_t *start = _start(checked)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(checked)
        cdef uint64_t index
        if checked is self._verified:
            found.first_index = load_u64(start + 16)
            found.last_index = found.first_index
            p = start
            while p + load_u32(p + 4) < start + size:
                p += load_u32(p + 4)
                found.last_index += 1
        else:
            _check_block(checked, &found)
        first = max(first, found.first_index)
        if first > found.last_index:
            raise ValueError(f"{first} lies after the block, which ends at {found.last_index}")
        if first <= self._prev_index:
            raise ValueError(f"entry {first} is not after {self._prev_index}, where the log was compacted to")
        if first > self._last() + 1:
            raise ValueError(f"entry {first} after {self._last()} leaves a gap")
        p = start
        for index in range(found.first_index, first):
            p += load_u32(p + 4)
        if load_u64(p + 8) < self._term(first - 1):
            raise ValueError(f"entry {first} has term {load_u64(p + 8)} after {self._term(first - 1)}")
        if p != start:
            checked = PyBytes_FromStringAndSize(<const char *>p, size - (p - start))
        self._verified = None
        self._truncate(first)
        self._keep(checked, first)

    cdef int _keep(self, bytes block, uint64_t first) except -1:
        """Take over a block that has been verified, follows `last_index` and does not decrease the term."""
        cdef const uint8_t *p = _start(block)
        cdef const uint8_t *end = p + PyBytes_GET_SIZE(block)
        cdef uint64_t sum_bytes = self._end(self._last())
        cdef Py_ssize_t count = 0
        cdef uint32_t size
        assert first == self._last() + 1
        while p < end:
            p += load_u32(p + 4)
            count += 1
        self._terms.reserve(count)
        self._ends.reserve(count)
        self._firsts.reserve(1)
        self._blocks.append(block)
        self._firsts.push(first)
        p = _start(block)
        while p < end:
            size = load_u32(p + 4)
            sum_bytes += size
            self._terms.push(load_u64(p + 8))
            self._ends.push(sum_bytes)
            p += size
        self._check()
        return 0

    # Asking.

    def term(self, index):
        """Return the term of an entry in `prev_index..last_index`."""
        cdef uint64_t checked = _u64(index)
        if checked < self._prev_index:
            raise self._compacted(checked)
        if checked > self._last():
            raise self._unavailable(checked)
        return self._term(checked)

    def size_bytes(self, lo, hi):
        """Return the bytes of the records `lo..hi`, in memory or not."""
        cdef uint64_t first = _u64(lo)
        cdef uint64_t last = _u64(hi)
        self._check_range(first, last)
        return self._end(last) - self._end(first - 1)

    def offset(self, index):
        """Return the bytes before the record at `index`, in `first_index..last_index + 1`, from a fixed origin."""
        cdef uint64_t checked = _u64(index)
        if checked <= self._prev_index:
            raise self._compacted(checked)
        if checked > self._last() + 1:
            raise self._unavailable(checked)
        return self._end(checked - 1)

    def upto_bytes(self, lo, hi, max_bytes):
        """Return the highest index of `lo..hi` such that the records up to it fit in `max_bytes`; `lo` at least."""
        cdef uint64_t first = _u64(lo)
        cdef uint64_t last = _u64(hi)
        cdef uint64_t limit = _u64(max_bytes)
        cdef uint64_t before
        self._check_range(first, last)
        if first > last:
            raise ValueError(f"the range {first}..{last} is empty")
        before = self._end(first - 1)
        limit = U64_MAX if limit > U64_MAX - before else before + limit
        return max(first, self._prev_index + <uint64_t>_above(
            self._ends.at, <Py_ssize_t>(first - self._prev_index - 1), <Py_ssize_t>(last - self._prev_index), limit
        ))

    def spans(self, lo, hi):
        """Return the encoded bytes of `lo..hi`, in order, without a copy. They outlive any change of the log."""
        cdef uint64_t first = _u64(lo)
        cdef uint64_t last = _u64(hi)
        cdef list spans = []
        cdef Py_ssize_t number
        cdef Py_ssize_t start
        cdef Py_ssize_t end
        cdef bytes block
        for number in range(self._find(first, last), self._firsts.count):
            if self._firsts.at[number] > last:
                break
            block = self._piece(number, first, last, &start, &end)
            if start == 0 and end == PyBytes_GET_SIZE(block):
                spans.append(PyMemoryView_FromObject(block))
            else:
                spans.append(PyMemoryView_FromObject(block)[start:end])
        return spans

    def entries(self, lo, hi):
        """Return (index, term, stamp, kind, payload) of `lo..hi`."""
        cdef uint64_t first = _u64(lo)
        cdef uint64_t last = _u64(hi)
        cdef list entries = []
        cdef Py_ssize_t number
        cdef Py_ssize_t start
        cdef Py_ssize_t end
        cdef bytes block
        cdef const uint8_t *p
        for number in range(self._find(first, last), self._firsts.count):
            if self._firsts.at[number] > last:
                break
            block = self._piece(number, first, last, &start, &end)
            p = _start(block)
            while start < end:
                entries.append(_decode(p + start))
                start += load_u32(p + start + 4)
        return entries

    cdef Py_ssize_t _find(self, uint64_t lo, uint64_t hi) except -1:
        """Return the number of the block that holds `lo`; past the last one if the range is empty."""
        self._check_range(lo, hi)
        if lo > hi:
            return self._firsts.count
        if lo < self._cached_first():
            raise NotCached(f"index {lo}, in memory from {self._cached_first()} on")
        return _above(self._firsts.at, 0, self._firsts.count, lo) - 1

    cdef bytes _piece(self, Py_ssize_t number, uint64_t lo, uint64_t hi, Py_ssize_t *start, Py_ssize_t *end):
        """Return a block and the part of it that `lo..hi` covers."""
        cdef bytes block = self._blocks[self._head + number]
        cdef uint64_t first = self._firsts.at[number]
        cdef uint64_t origin = self._end(first - 1)
        start[0] = <Py_ssize_t>(self._end(lo - 1) - origin) if lo > first else 0
        end[0] = min(PyBytes_GET_SIZE(block), <Py_ssize_t>(self._end(hi) - origin))
        return block

    def find_conflict_by_term(self, index, term):
        """Return (index', its term): the highest index' <= `index` whose term is <= `term` (Raft §5.3)."""
        cdef uint64_t checked = _u64(index)
        cdef uint64_t limit = _u64(term)
        cdef Py_ssize_t position
        if checked < self._prev_index or checked > self._last():
            return checked, 0
        position = _above(self._terms.at, 0, <Py_ssize_t>(checked - self._prev_index), limit)
        if position:
            return self._prev_index + <uint64_t>position, self._terms.at[position - 1]
        if self._prev_term <= limit:
            return self._prev_index, self._prev_term
        return self._prev_index - 1, 0

    # Shrinking.

    def truncate(self, from_index):
        """Drop the entries from `from_index` on, if there are any."""
        cdef uint64_t first = _u64(from_index)
        if first <= self._prev_index:
            raise self._compacted(first)
        self._truncate(first)

    cdef int _truncate(self, uint64_t first) except -1:
        cdef Py_ssize_t keep
        cdef bytes block
        if first > self._last():
            return 0
        while self._firsts.count and self._firsts.at[self._firsts.count - 1] >= first:
            self._firsts.count -= 1
            self._blocks.pop()
        if self._firsts.count:
            block = self._blocks[len(self._blocks) - 1]
            keep = <Py_ssize_t>(self._end(first - 1) - self._end(self._firsts.at[self._firsts.count - 1] - 1))
            if keep < PyBytes_GET_SIZE(block):
                # A copy, so that the entries dropped do not stay in memory.
                self._blocks[len(self._blocks) - 1] = PyBytes_FromStringAndSize(PyBytes_AS_STRING(block), keep)
        self._terms.count = <Py_ssize_t>(first - self._prev_index - 1)
        self._ends.count = self._terms.count
        self._check()
        return 0

    def compact(self, to_index):
        """Drop the entries up to and with `to_index`, which becomes `prev_index`."""
        cdef uint64_t to = _u64(to_index)
        cdef uint64_t term
        cdef Py_ssize_t count
        cdef Py_ssize_t dead
        cdef bytes block
        if to < self._prev_index:
            raise self._compacted(to)
        if to > self._last():
            raise self._unavailable(to)
        while self._firsts.count > 1 and self._firsts.at[1] <= to + 1:
            self._drop_oldest_block()
        if self._firsts.count and to == self._last():
            self._drop_oldest_block()
        elif self._firsts.count and self._firsts.at[0] <= to:
            # A copy, so that the entries dropped do not stay in memory.
            block = self._blocks[self._head]
            dead = <Py_ssize_t>(self._end(to) - self._end(self._firsts.at[0] - 1))
            self._blocks[self._head] = PyBytes_FromStringAndSize(
                PyBytes_AS_STRING(block) + dead, PyBytes_GET_SIZE(block) - dead
            )
            self._firsts.at[0] = to + 1
        term = self._term(to)
        self._origin = self._end(to)
        count = <Py_ssize_t>(to - self._prev_index)
        self._terms.drop_first(count)
        self._ends.drop_first(count)
        self._prev_index = to
        self._prev_term = term
        self._check()

    def evict(self, max_bytes, keep_from=0):
        """Forget the bytes of the oldest entries, a block at a time, until `cached_bytes` is at most `max_bytes`."""
        cdef uint64_t limit = _u64(max_bytes)
        cdef uint64_t keep = _u64(keep_from)
        cdef uint64_t last
        while self._cached_bytes() > limit:
            last = self._firsts.at[1] - 1 if self._firsts.count > 1 else self._last()
            if 0 < keep <= last:
                break
            self._drop_oldest_block()
        self._check()

    cdef int _drop_oldest_block(self) except -1:
        self._blocks[self._head] = None
        self._head += 1
        self._firsts.drop_first(1)
        if self._head > 32 and self._head > self._firsts.count:
            del self._blocks[:self._head]
            self._head = 0
        return 0

    def restore(self, index, term):
        """Empty the log; it goes on after the entry `index` of `term`, which a snapshot holds."""
        cdef uint64_t checked = _limited(index, LAST_INDEX)
        cdef uint64_t checked_term = _u64(term)
        if checked == 0 and checked_term != 0:
            raise ValueError(f"nothing before the first entry has a term, least of all {checked_term}")
        self._origin = self._end(self._last())
        self._prev_index = checked
        self._prev_term = checked_term
        self._terms.count = 0
        self._ends.count = 0
        self._firsts.count = 0
        self._blocks = []
        self._head = 0
        self._verified = None

    cdef int _check(self) except -1:
        assert self._terms.count == self._ends.count
        assert self._firsts.count == len(self._blocks) - self._head
        assert self._cached_first() > self._prev_index
        assert self._term(self._last()) >= self._prev_term
        return 0
