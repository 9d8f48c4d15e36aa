# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: autotestdict=False, auto_pickle=False
"""What an SMTP client sends, cut into commands and contents, compiled: the same names and results as `_purescan`.

Content is looked at 64 octets at a time (`_fastscan.h`) and kept in blocks that become `bytes` without another copy. A
block is a bytes object that nobody else knows yet: the transport receives right into it, stuffed dots are closed up in
place, and it is cut to its size when it is given away.
"""

from __future__ import annotations

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_DecodeUTF8, PyUnicode_FromKindAndData
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memchr, memcmp, memcpy, memmove

from smtpraft.smtp.faults import COMMAND_BYTES_MAX_EXTENDED, BareOctet, LineFault

__all__ = ["CommandLines", "ContentReader", "plain_path"]

cdef extern from "_fastscan.h" nogil:
    enum:
        SCAN_NOTHING
        SCAN_DOT
        SCAN_FAULT
    size_t scan_content(const uint8_t *at, size_t count, int *cr, int *line, int *high, int *event)
    size_t plain_path_bytes(const uint8_t *at, size_t count, size_t *at_sign)

cdef extern from "Python.h":
    PyObject *new_bytes "PyBytes_FromStringAndSize"(const char *, Py_ssize_t)
    int _PyBytes_Resize(PyObject **, Py_ssize_t) except -1
    char *bytes_at "PyBytes_AS_STRING"(PyObject *)
    void Py_XDECREF(PyObject *)
    int PyUnicode_IS_ASCII(object)
    Py_ssize_t PyUnicode_GET_LENGTH(object)
    const uint8_t *PyUnicode_1BYTE_DATA(object)
    int PyBUF_WRITE
    int PyUnicode_1BYTE_KIND

cdef Py_ssize_t LINE_MAX = COMMAND_BYTES_MAX_EXTENDED
cdef object BARE = LineFault.BARE
cdef object TOO_LONG = LineFault.TOO_LONG
cdef bytes EHLO = b"EHLO", HELO = b"HELO", MAIL = b"MAIL", RCPT = b"RCPT", DATA = b"DATA", RSET = b"RSET"
cdef bytes NOOP = b"NOOP", QUIT = b"QUIT"

cdef enum:
    ROOM_BYTES = 65536  # asked of the kernel at a time, and the first block of a message
    BLOCK_BYTES = 262144  # blocks grow up to this


cpdef tuple plain_path(str text):
    """Return (local part, domain, length of the path) if `text` begins with a path such as nearly all mail has."""
    cdef const uint8_t *data
    cdef size_t at_sign = 0, size
    if not PyUnicode_IS_ASCII(text):
        return _plain_path_of_prefix(text)
    data = PyUnicode_1BYTE_DATA(text)
    size = plain_path_bytes(data, <size_t>PyUnicode_GET_LENGTH(text), &at_sign)
    if size == 0:
        return None
    return (
        PyUnicode_FromKindAndData(PyUnicode_1BYTE_KIND, <void *>(data + 1), <Py_ssize_t>at_sign - 1),
        PyUnicode_FromKindAndData(
            PyUnicode_1BYTE_KIND, <void *>(data + at_sign + 1), <Py_ssize_t>(size - at_sign) - 2
        ),
        <Py_ssize_t>size,
    )


cdef tuple _plain_path_of_prefix(str text):
    cdef Py_ssize_t end = text.find(">")
    cdef str prefix = text[: end + 1]
    return plain_path(prefix) if prefix.isascii() else None


cdef inline uint8_t _upper(uint8_t octet) noexcept nogil:
    return octet - 32 if 97 <= octet <= 122 else octet


cdef inline bint _has_bare(const uint8_t *at, Py_ssize_t count) noexcept nogil:
    return (
        memchr(at, 10, count) != NULL or memchr(at, 13, count) != NULL or memchr(at, 0, count) != NULL
        if count > 0
        else False
    )


cdef bytes _verb(const uint8_t *at, Py_ssize_t count):
    cdef uint8_t verb[4]
    cdef int place
    if count == 4:
        for place in range(4):
            verb[place] = _upper(at[place])
        if memcmp(verb, b"MAIL", 4) == 0:
            return MAIL
        if memcmp(verb, b"RCPT", 4) == 0:
            return RCPT
        if memcmp(verb, b"DATA", 4) == 0:
            return DATA
        if memcmp(verb, b"EHLO", 4) == 0:
            return EHLO
        if memcmp(verb, b"RSET", 4) == 0:
            return RSET
        if memcmp(verb, b"QUIT", 4) == 0:
            return QUIT
        if memcmp(verb, b"NOOP", 4) == 0:
            return NOOP
        if memcmp(verb, b"HELO", 4) == 0:
            return HELO
    return (<bytes>(<char *>at)[:count]).upper()


cdef tuple _command(const uint8_t *at, Py_ssize_t count):
    cdef const uint8_t *blank = <const uint8_t *>memchr(at, 32, count) if count > 0 else NULL
    cdef Py_ssize_t start, end = count
    cdef Py_ssize_t verb_bytes = count if blank == NULL else blank - at
    cdef object argument
    start = count if blank == NULL else verb_bytes + 1
    while start < end and (at[start] == 32 or at[start] == 9):
        start += 1
    while end > start and (at[end - 1] == 32 or at[end - 1] == 9):
        end -= 1
    if start == end:
        argument = ""
    else:
        try:
            argument = PyUnicode_DecodeUTF8(<char *>at + start, end - start, NULL)
        except UnicodeDecodeError:
            argument = None
    return _verb(at, verb_bytes), argument, count


cdef class CommandLines:
    """Cuts what was received into command lines. The same bytes give the same lines, however they arrive."""

    cdef bytes _data
    cdef Py_ssize_t _position
    cdef bint _discarding

    def __cinit__(self):
        self._data = b""
        self._position = 0
        self._discarding = False

    def feed(self, bytes data not None):
        """Append what was received."""
        if self._position < PyBytes_GET_SIZE(self._data):
            data = self._data[self._position :] + data
        self._data = data
        self._position = 0

    @property
    def waiting_bytes(self):
        """How much was received and neither returned nor taken."""
        return PyBytes_GET_SIZE(self._data) - self._position

    def next_command(self):
        """Return (verb in capitals, argument, length of the line) of the next line, or what is wrong with it."""
        cdef const uint8_t *at
        cdef Py_ssize_t left, end
        while True:
            at = <const uint8_t *>PyBytes_AS_STRING(self._data) + self._position
            left = PyBytes_GET_SIZE(self._data) - self._position
            end = _find_crlf(at, left)
            if self._discarding:
                if end < 0:
                    self._keep_last_cr(at, left)
                    return None
                self._discarding = False
                self._position += end + 2
                continue
            if end < 0:
                if left and at[left - 1] == 13:
                    left -= 1  # that CR may be half of the line's end
                if not _has_bare(at, left) and left <= LINE_MAX:
                    return None
                fault = BARE if _has_bare(at, left) else TOO_LONG
                self._discarding = True
                self._keep_last_cr(at, PyBytes_GET_SIZE(self._data) - self._position)
                return fault
            if _has_bare(at, end):
                self._position += end + 2
                return BARE
            if end > LINE_MAX:
                self._position += end + 2
                return TOO_LONG
            command = _command(at, end)
            self._position += end + 2
            return command

    def take_rest(self):
        """Return everything that was received and not yet returned as a line: it is mail content now."""
        rest = self._data[self._position :]
        self._data = b""
        self._position = 0
        return rest

    cdef void _keep_last_cr(self, const uint8_t *at, Py_ssize_t left):
        self._data = b"\r" if left and at[left - 1] == 13 else b""
        self._position = 0


cdef Py_ssize_t _find_crlf(const uint8_t *at, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t done = 0
    cdef const uint8_t *found
    while done < count:
        found = <const uint8_t *>memchr(at + done, 10, count - done)
        if found == NULL:
            return -1
        if found > at and (found - 1)[0] == 13:
            return found - at - 1
        done = found - at + 1
    return -1


cdef enum State:
    TEXT
    DOT  # that begins a line
    DOT_CR
    ENDED


cdef class ContentReader:
    """Takes what the client sends after 354, in any chunks; the same bytes give the same content, however they arrive."""

    cdef readonly object size_max_bytes
    cdef readonly bytes rest
    cdef readonly bint forgotten
    cdef Py_ssize_t _size_max, _kept, _filled, _capacity, _scratch_bytes
    cdef State _state
    cdef int _cr, _line, _high
    cdef list _blocks
    cdef PyObject *_block  # ours alone until it is in `_blocks`
    cdef uint8_t *_scratch  # where content is received that is forgotten

    def __cinit__(self, size_max_bytes):
        self.size_max_bytes = size_max_bytes
        self._size_max = size_max_bytes
        self.rest = b""
        self.forgotten = False
        self._kept = self._filled = self._capacity = 0
        self._state = TEXT
        # The content begins as if after a line's end, so that a dot right at the start ends an empty message.
        self._cr = self._high = 0
        self._line = 1
        self._blocks = []
        self._block = NULL
        self._scratch = NULL

    def __dealloc__(self):
        Py_XDECREF(self._block)
        PyMem_Free(self._scratch)

    @property
    def size_bytes(self):
        """Octets of content so far, dots unstuffed, forgotten ones included; without what may still be the end."""
        return self._size()

    @property
    def ascii(self):
        """No octet above 127 so far?"""
        return not self._high

    cdef Py_ssize_t _size(self) noexcept:
        if self._kept == 0 or self._state == ENDED:
            return self._kept
        if self._state != TEXT or self._line:
            return self._kept - 2
        return self._kept - 1 if self._cr else self._kept

    def feed(self, bytes data not None):
        """Take what was received. Return whether the content is complete.

        Raises:
            BareOctet: this is not how mail is sent; nothing that follows can be trusted.
        """
        return self._take(<const uint8_t *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))

    def room(self):
        """Return where the next octets can be received, to be told to `filled`: some tens of KiB, used at once."""
        if self.forgotten:
            if self._scratch == NULL:
                self._scratch = <uint8_t *>PyMem_Malloc(ROOM_BYTES)
                if self._scratch == NULL:
                    raise MemoryError
            return PyMemoryView_FromMemory(<char *>self._scratch, ROOM_BYTES, PyBUF_WRITE)
        self._make_room(ROOM_BYTES // 4, ROOM_BYTES)
        return PyMemoryView_FromMemory(bytes_at(self._block) + self._filled, self._capacity - self._filled, PyBUF_WRITE)

    def filled(self, Py_ssize_t count):
        """As `feed`, of the first `count` octets of the `room` that was returned last."""
        cdef Py_ssize_t room = ROOM_BYTES if self._scratch != NULL else self._capacity - self._filled
        if not 0 <= count <= room:
            raise ValueError(f"{count} octets in a room of {room}")
        if self._scratch != NULL:
            return self._take(self._scratch, count)
        return self._take(<const uint8_t *>bytes_at(self._block) + self._filled, count) if count else False

    def forget(self):
        """Drop the content and keep none of the rest; go on until its end."""
        self._forget()

    def take_blocks(self):
        """Return the content of a complete message; the reader keeps nothing."""
        cdef list blocks
        self._push()
        blocks = self._blocks
        self._blocks = []
        return blocks

    cdef void _forget(self):
        self.forgotten = True
        self._blocks = []
        Py_XDECREF(self._block)
        self._block = NULL
        self._filled = self._capacity = 0

    cdef int _take(self, const uint8_t *at, Py_ssize_t count) except -1:
        cdef Py_ssize_t done = 0, clean
        cdef int event = SCAN_NOTHING
        while done < count:
            if self._state == TEXT:
                clean = <Py_ssize_t>scan_content(
                    at + done, <size_t>(count - done), &self._cr, &self._line, &self._high, &event
                )
                if clean:
                    self._keep(at + done, clean)
                    done += clean
                if event == SCAN_FAULT:
                    raise BareOctet
                if event == SCAN_DOT:
                    self._state = DOT
                    done += 1
            elif self._state == DOT:
                if at[done] == 13:
                    self._state = DOT_CR
                    done += 1
                else:
                    # The dot was stuffed (RFC 5321 §4.5.2): it is left out, and what follows does not begin a line.
                    self._state = TEXT
                    self._line = 0
            elif self._state == DOT_CR:
                if at[done] != 10:
                    raise BareOctet
                self._state = ENDED
                self.rest = PyBytes_FromStringAndSize(<char *>at + done + 1, count - done - 1)
                break
            else:
                raise ValueError("the content has ended")
        if not self.forgotten and self._size() > self._size_max:
            self._forget()
        return self._state == ENDED

    cdef int _keep(self, const uint8_t *at, Py_ssize_t count) except -1:
        """Append to the content. `at` may be in the block itself, at its end or, after dots that went, beyond."""
        cdef Py_ssize_t part
        cdef uint8_t *end
        self._kept += count
        if self.forgotten:
            return 0
        end = NULL if self._block == NULL else <uint8_t *>bytes_at(self._block) + self._filled
        if end != NULL and end <= at and at < end + (self._capacity - self._filled):
            if at != end:
                memmove(end, at, count)
            self._filled += count
            return 0
        while count:
            self._make_room(1, count)
            part = min(count, self._capacity - self._filled)
            memcpy(bytes_at(self._block) + self._filled, at, part)
            self._filled += part
            at += part
            count -= part
        return 0

    cdef int _make_room(self, Py_ssize_t needed, Py_ssize_t wished) except -1:
        """Have room for `needed` octets, and if there is not, for more."""
        cdef Py_ssize_t capacity
        if self._block != NULL:
            if self._capacity - self._filled >= needed:
                return 0
            if self._capacity < BLOCK_BYTES:
                capacity = min(max(2 * self._capacity, self._filled + wished), <Py_ssize_t>BLOCK_BYTES)
                if capacity - self._filled >= needed:
                    self._resize(capacity)
                    return 0
            self._push()
            wished = BLOCK_BYTES
        capacity = max(min(wished, <Py_ssize_t>BLOCK_BYTES), needed)
        self._block = new_bytes(NULL, capacity)
        if self._block == NULL:
            raise MemoryError
        self._capacity = capacity
        return 0

    cdef int _resize(self, Py_ssize_t capacity) except -1:
        self._capacity = 0
        _PyBytes_Resize(&self._block, capacity)  # on failure the block is gone, and NULL
        self._capacity = capacity
        return 0

    cdef int _push(self) except -1:
        cdef PyObject *block
        if self._block == NULL:
            return 0
        if self._filled:
            if self._filled != self._capacity:
                self._resize(self._filled)
            self._blocks.append(<bytes>self._block)
        block = self._block
        self._block = NULL
        self._filled = self._capacity = 0
        Py_XDECREF(block)
        return 0
