# Checked integers, checksum, entries, frames, heartbeats and the quorum tally, compiled: the twin of `_purecodec`.
# Included by `_fastlog.pyx`, so that all of it is one C file and the log's calls cost nothing.

cdef extern from "_fastlog.h" nogil:
    uint16_t load_u16(const uint8_t *p) noexcept
    uint32_t load_u32(const uint8_t *p) noexcept
    uint64_t load_u64(const uint8_t *p) noexcept
    void store_u16(uint8_t *p, uint16_t value) noexcept
    void store_u32(uint8_t *p, uint32_t value) noexcept
    void store_u64(uint8_t *p, uint64_t value) noexcept
    int crc32c_init() noexcept
    uint32_t crc32c_best(uint32_t value, const uint8_t *p, size_t size) noexcept
    uint32_t crc32c_portable(uint32_t value, const uint8_t *p, size_t size) noexcept
    void write_record(
        uint8_t *p, uint64_t term, uint64_t index, uint64_t stamp, uint8_t kind, const uint8_t *payload, size_t payload_bytes
    ) noexcept
    void write_record_portable(
        uint8_t *p, uint64_t term, uint64_t index, uint64_t stamp, uint8_t kind, const uint8_t *payload, size_t payload_bytes
    ) noexcept

cdef extern from "Python.h":
    object PyMemoryView_FromObject(object owner)

cdef enum:
    HEADER = 36
    NORMAL = 0
    COMMAND = 1
    COMMAND_HEADER = 25
    TOGETHER = 128
    FRAME_HEADER = 12
    VERSION = 1
    HEARTBEAT = 1
    HEARTBEAT_RESPONSE = 2
    HEARTBEAT_FIELDS = 9
    HEARTBEAT_RESPONSE_FIELDS = 8

cdef uint64_t RECORD_MAX = ENTRY_BYTES_MAX
cdef uint64_t LAST_INDEX = INDEX_MAX
cdef uint64_t U64_MAX = 0xFFFFFFFFFFFFFFFF

assert HEADER == ENTRY_HEADER_BYTES
assert NORMAL == ENTRY_NORMAL
assert COMMAND == COMMAND_TAG
assert COMMAND_HEADER == COMMAND_HEADER_BYTES
assert TOGETHER == COMMANDS_MAX
assert FRAME_HEADER == FRAME_HEADER_BYTES
assert VERSION == FRAME_VERSION
assert HEARTBEAT == FRAME_HEARTBEAT
assert HEARTBEAT_RESPONSE == FRAME_HEARTBEAT_RESPONSE

_CRC_IN_HARDWARE = bool(crc32c_init())


cdef inline uint64_t _u64(object value) except? 0xFFFFFFFFFFFFFFFF:
    """Python's own rule for an index, not C's, which takes 1.5 for 1."""
    if PyLong_CheckExact(value):
        return PyLong_AsUnsignedLongLong(value)
    return PyLong_AsUnsignedLongLong(as_int(value))


cdef uint64_t _limited(object value, uint64_t limit) except? 0xFFFFFFFFFFFFFFFF:
    cdef uint64_t number = _u64(value)
    if number > limit:
        raise OverflowError(f"{number} is not in 0..{limit}")
    return number


cdef inline bytes _as_bytes(object data):
    """Return `data` itself when it is `bytes`, else a copy."""
    if PyBytes_Check(data):
        return data
    return bytes(memoryview(data))


cdef inline const uint8_t *_start(bytes data) noexcept:
    return <const uint8_t *>PyBytes_AS_STRING(data)


# ------------------------------------------------------------------------------------------------------------ checksum


def crc32c(data, value=0):
    """Return the CRC-32C of `data`, or of what had the checksum `value` with `data` after it."""
    cdef bytes contents = _as_bytes(data)
    return crc32c_best(<uint32_t>_limited(value, 0xFFFFFFFF), _start(contents), PyBytes_GET_SIZE(contents))


def _crc32c_portable(data, value=0):
    """The same without the processor's help; for the tests."""
    cdef bytes contents = _as_bytes(data)
    return crc32c_portable(<uint32_t>_limited(value, 0xFFFFFFFF), _start(contents), PyBytes_GET_SIZE(contents))


# ------------------------------------------------------------------------------------------------------------- entries


cdef enum Flaw:
    NONE
    SHORT
    BAD_SIZE
    BAD_CHECKSUM
    BAD_INDEX
    BAD_TERM
    RESERVED


cdef struct Range:
    uint64_t first_index
    uint64_t first_term
    uint64_t last_index
    uint64_t last_term
    Py_ssize_t at  # where a flaw was found


cdef Flaw _verify(const uint8_t *block, Py_ssize_t size, Range *found) noexcept nogil:
    """Check all records of a block and say what it spans."""
    cdef Py_ssize_t at = 0
    cdef uint64_t record, index, term
    cdef uint64_t last_index = 0
    cdef uint64_t last_term = 0
    cdef const uint8_t *p
    found.at = 0
    if size == 0:
        return SHORT
    while at < size:
        found.at = at
        p = block + at
        if size - at < HEADER:
            return SHORT
        record = load_u32(p + 4)
        if record < HEADER or record > RECORD_MAX or record > <uint64_t>(size - at):
            return BAD_SIZE
        if crc32c_best(0, p + 4, record - 4) != load_u32(p):
            return BAD_CHECKSUM
        term = load_u64(p + 8)
        index = load_u64(p + 16)
        if index == 0 or index > LAST_INDEX or (at != 0 and index != last_index + 1):
            return BAD_INDEX
        if term < last_term:
            return BAD_TERM
        if p[33] | p[34] | p[35]:
            return RESERVED
        if at == 0:
            found.first_index = index
            found.first_term = term
        last_index = index
        last_term = term
        at += <Py_ssize_t>record
    found.last_index = last_index
    found.last_term = last_term
    return NONE


def survey(spans):
    """See `_purecodec.survey`."""
    cdef Py_ssize_t size, at, count = 0, room = 0
    cdef uint64_t record, first_index = 0, first_term = 0, last_index = 0, last_term = 0, base = 0
    cdef uint32_t crc = 0
    cdef uint32_t *ends
    cdef const uint8_t *start
    cdef const uint8_t *p
    cdef const uint8_t[::1] view
    cdef list views = []
    for span in spans:
        view = span
        views.append(view)
        room += view.shape[0] // HEADER
    cdef bytes found = PyBytes_FromStringAndSize(NULL, room * 4)
    ends = <uint32_t *>PyBytes_AS_STRING(found)
    for span in views:
        view = span
        size = view.shape[0]
        if size == 0:
            continue
        start = &view[0]
        at = 0
        while at < size:
            if size - at < HEADER:
                return None
            p = start + at
            record = load_u32(p + 4)
            if record < HEADER or record > <uint64_t>(size - at):
                return None
            crc = crc32c_best(crc, p, 4)
            if count == 0:
                first_term = load_u64(p + 8)
                first_index = load_u64(p + 16)
            last_term = load_u64(p + 8)
            last_index = load_u64(p + 16)
            at += <Py_ssize_t>record
            if base + <uint64_t>at > 0xFFFFFFFF:
                raise OverflowError("more than 4 GiB of entries")
            ends[count] = <uint32_t>(base + at)
            count += 1
        base += size
    if count == 0 or last_index - first_index + 1 != <uint64_t>count:
        return None
    return first_index, last_index, first_term, last_term, base, crc, found[: count * 4]


cdef object _corrupt(Flaw flaw, Py_ssize_t at):
    cdef str reason
    if flaw == SHORT:
        reason = "no whole entry"
    elif flaw == BAD_SIZE:
        reason = "a bad size"
    elif flaw == BAD_CHECKSUM:
        reason = "a bad checksum"
    elif flaw == BAD_INDEX:
        reason = "an index out of order"
    elif flaw == BAD_TERM:
        reason = "a term that decreases"
    else:
        reason = "reserved bytes in use"
    return CorruptEntry(f"{reason} at {at}")


cdef int _check_block(bytes block, Range *found) except -1:
    cdef Flaw flaw = _verify(_start(block), PyBytes_GET_SIZE(block), found)
    if flaw != NONE:
        raise _corrupt(flaw, found.at)
    return 0


cdef inline tuple _decode(const uint8_t *p):
    """Return the entry at `p`, which has been verified."""
    cdef Py_ssize_t size = load_u32(p + 4)
    return (
        load_u64(p + 16),
        load_u64(p + 8),
        load_u64(p + 24),
        p[32],
        PyBytes_FromStringAndSize(<const char *>(p + HEADER), size - HEADER),
    )


cdef inline list _as_list(object payloads):
    """Return `payloads` itself when it is a list, else one of them; no Python runs between looking and writing."""
    if type(payloads) is list:
        return payloads
    return list(payloads)


cdef bytes _encode(
    uint64_t term, uint64_t first_index, uint64_t stamp, uint8_t kind, list payloads, uint64_t *ends, uint64_t end
):
    """Return one block, written once at its final size. `ends`, unless NULL, gets where each entry ends, from `end` on."""
    cdef Py_ssize_t count = len(payloads)
    cdef Py_ssize_t total = 0
    cdef Py_ssize_t number
    cdef Py_ssize_t size
    cdef object payload
    cdef bytes block
    cdef uint8_t *p
    if first_index == 0:
        raise ValueError("entries are counted from 1")
    if count == 0:
        raise ValueError("a block has at least one entry")
    if first_index > LAST_INDEX or <uint64_t>(count - 1) > LAST_INDEX - first_index:
        raise OverflowError(f"{count} entries from {first_index} on go past the last index")
    for payload in payloads:
        if not PyBytes_Check(payload):
            raise TypeError(f"a payload is bytes, not {type(payload).__name__}")
        size = HEADER + PyBytes_GET_SIZE(payload)
        if <uint64_t>size > RECORD_MAX:
            raise ValueError(f"an entry of {size} bytes is larger than {RECORD_MAX}")
        total += size
    block = PyBytes_FromStringAndSize(NULL, total)
    p = <uint8_t *>_start(block)
    for number in range(count):
        payload = payloads[number]
        size = PyBytes_GET_SIZE(payload)
        write_record(p, term, first_index + <uint64_t>number, stamp, kind, _start(<bytes>payload), size)
        p += HEADER + size
        if ends != NULL:
            end += <uint64_t>(HEADER + size)
            ends[number] = end
    return block


def encode_entries(term, first_index, stamp, kind, payloads):
    """Return one block: an entry for each of `payloads`, from `first_index` on, all of one term, stamp and kind."""
    cdef uint64_t checked_term = _u64(term)
    cdef uint64_t checked_first = _u64(first_index)
    cdef uint64_t checked_stamp = _u64(stamp)
    cdef uint8_t checked_kind = <uint8_t>_limited(kind, 0xFF)
    return _encode(checked_term, checked_first, checked_stamp, checked_kind, _as_list(payloads), NULL, 0)


def _encode_entry_portable(term, index, stamp, kind, payload):
    """One entry, without the processor's help; for the tests."""
    cdef bytes checked = _as_bytes(payload)
    cdef bytes block = PyBytes_FromStringAndSize(NULL, HEADER + PyBytes_GET_SIZE(checked))
    write_record_portable(
        <uint8_t *>_start(block),
        _u64(term),
        _u64(index),
        _u64(stamp),
        <uint8_t>_limited(kind, 0xFF),
        _start(checked),
        PyBytes_GET_SIZE(checked),
    )
    return block


def decode_entries(block):
    """Return (index, term, stamp, kind, payload) of each entry of `block`, verified."""
    cdef bytes checked = _as_bytes(block)
    cdef Range found
    cdef const uint8_t *p
    cdef const uint8_t *end
    cdef list entries = []
    _check_block(checked, &found)
    p = _start(checked)
    end = p + PyBytes_GET_SIZE(checked)
    while p < end:
        entries.append(_decode(p))
        p += load_u32(p + 4)
    return entries


def block_range(block):
    """Verify all of `block` and return (first index, its term, last index, its term)."""
    cdef bytes checked = _as_bytes(block)
    cdef Range found
    _check_block(checked, &found)
    return found.first_index, found.first_term, found.last_index, found.last_term


# -------------------------------------------------------------------------------------------------------------- frames


cdef inline void _write_frame_header(
    uint8_t *p, uint32_t length, uint16_t head_length, uint8_t type, const uint8_t *head
) noexcept nogil:
    store_u32(p, length)
    store_u16(p + 4, head_length)
    p[6] = type
    p[7] = VERSION
    store_u32(p + 8, crc32c_best(crc32c_best(0, p, 8), head, head_length))


def encode_frame(type, head, tail_bytes=0):
    """Return the header and the head of a frame; the caller writes the `tail_bytes` bytes of the tail after it."""
    cdef uint8_t checked_type = <uint8_t>_limited(type, 0xFF)
    cdef uint64_t length = _limited(tail_bytes, 0xFFFFFFFF)
    cdef Py_ssize_t size
    cdef bytes frame
    cdef uint8_t *p
    if not PyBytes_Check(head):
        raise TypeError("a head is bytes")
    size = PyBytes_GET_SIZE(head)
    if size > 0xFFFF:
        raise ValueError(f"a head of {size} bytes")
    length += <uint64_t>size
    if length > 0xFFFFFFFF:
        raise OverflowError(f"a frame of {length} bytes")
    frame = PyBytes_FromStringAndSize(NULL, FRAME_HEADER + size)
    p = <uint8_t *>_start(frame)
    memcpy(p + FRAME_HEADER, PyBytes_AS_STRING(head), size)
    _write_frame_header(p, <uint32_t>length, <uint16_t>size, checked_type, p + FRAME_HEADER)
    return frame


cdef enum Stage:
    IN_HEADER
    IN_HEAD
    IN_TAIL


@cython.final
cdef class FrameDecoder:
    """Cuts a byte stream into frames of at most `max_bytes` (head and tail) and one version.

    Head and tail are copied once, from what arrived to the object that is handed out.
    """

    cdef uint64_t _max_bytes
    cdef uint8_t _version
    cdef bint _broken
    cdef Stage _stage
    cdef Py_ssize_t _have  # bytes of the header, head or tail that have arrived
    cdef uint8_t _header[FRAME_HEADER]
    cdef bytes _head
    cdef bytes _tail

    def __init__(self, max_bytes, version=FRAME_VERSION):
        self._max_bytes = _u64(max_bytes)
        self._version = <uint8_t>_limited(version, 0xFF)
        self._broken = False
        self._expect(IN_HEADER)

    cdef inline void _expect(self, Stage stage) noexcept:
        self._stage = stage
        self._have = 0

    def feed(self, data):
        """Take what arrived, in pieces of any size, and return (type, head, tail) of each frame that is complete."""
        cdef bytes arrived = _as_bytes(data)
        cdef const uint8_t *p = _start(arrived)
        cdef Py_ssize_t left = PyBytes_GET_SIZE(arrived)
        cdef list frames = []
        if self._broken:
            raise CorruptFrame("the stream was corrupt before")
        while True:
            if self._stage == IN_HEADER:
                if not self._take(self._header, FRAME_HEADER, &p, &left):
                    return frames
                self._check_header()
                self._head = PyBytes_FromStringAndSize(NULL, load_u16(self._header + 4))
                self._expect(IN_HEAD)
            if self._stage == IN_HEAD:
                if not self._take(<uint8_t *>_start(self._head), PyBytes_GET_SIZE(self._head), &p, &left):
                    return frames
                self._check_head()
                self._tail = PyBytes_FromStringAndSize(
                    NULL, <Py_ssize_t>load_u32(self._header) - PyBytes_GET_SIZE(self._head)
                )
                self._expect(IN_TAIL)
            if not self._take(<uint8_t *>_start(self._tail), PyBytes_GET_SIZE(self._tail), &p, &left):
                return frames
            frames.append((self._header[6], self._head, self._tail))
            self._head = None
            self._tail = None
            self._expect(IN_HEADER)

    cdef inline bint _take(self, uint8_t *to, Py_ssize_t size, const uint8_t **p, Py_ssize_t *left) noexcept:
        """Move bytes to where they belong; return whether all `size` are there."""
        cdef Py_ssize_t count = min(size - self._have, left[0])
        memcpy(to + self._have, p[0], count)
        self._have += count
        p[0] += count
        left[0] -= count
        return self._have == size

    cdef int _check_header(self) except -1:
        cdef uint32_t length = load_u32(self._header)
        if self._header[7] != self._version:
            self._broken = True
            raise CorruptFrame(f"version {self._header[7]}, expected {self._version}")
        if length > self._max_bytes:
            self._broken = True
            raise CorruptFrame(f"a frame of {length} bytes, at most {self._max_bytes} are taken")
        if load_u16(self._header + 4) > length:
            self._broken = True
            raise CorruptFrame(f"a head of {load_u16(self._header + 4)} bytes in a frame of {length}")
        return 0

    cdef int _check_head(self) except -1:
        cdef uint32_t crc = crc32c_best(0, self._header, 8)
        crc = crc32c_best(crc, _start(self._head), PyBytes_GET_SIZE(self._head))
        if crc != load_u32(self._header + 8):
            self._broken = True
            raise CorruptFrame("bad checksum")
        return 0


# ---------------------------------------------------------------------------------------------------------- heartbeats


cdef bytes _heartbeat_frame(uint8_t type, const uint64_t *fields, Py_ssize_t count):
    cdef bytes frame = PyBytes_FromStringAndSize(NULL, FRAME_HEADER + 8 * count)
    cdef uint8_t *p = <uint8_t *>_start(frame)
    cdef Py_ssize_t number
    for number in range(count):
        store_u64(p + FRAME_HEADER + 8 * number, fields[number])
    _write_frame_header(p, <uint32_t>(8 * count), <uint16_t>(8 * count), type, p + FRAME_HEADER)
    return frame


def encode_heartbeat(
    term, commit, read_context, retain_index, lease_nonce, lease_session, digest_index, digest, sent_us
):
    """Return a complete heartbeat frame: the nine numbers as u64, in this order."""
    cdef uint64_t fields[HEARTBEAT_FIELDS]
    fields[0] = _u64(term)
    fields[1] = _u64(commit)
    fields[2] = _u64(read_context)
    fields[3] = _u64(retain_index)
    fields[4] = _u64(lease_nonce)
    fields[5] = _u64(lease_session)
    fields[6] = _u64(digest_index)
    fields[7] = _u64(digest)
    fields[8] = _u64(sent_us)
    return _heartbeat_frame(HEARTBEAT, fields, HEARTBEAT_FIELDS)


def decode_heartbeat(head):
    """Return what `encode_heartbeat` was given, from the head of its frame."""
    cdef bytes checked = _as_bytes(head)
    cdef const uint8_t *p = _start(checked)
    if PyBytes_GET_SIZE(checked) != 8 * HEARTBEAT_FIELDS:
        raise CorruptFrame(f"a heartbeat of {PyBytes_GET_SIZE(checked)} bytes")
    return (
        load_u64(p), load_u64(p + 8), load_u64(p + 16), load_u64(p + 24),
        load_u64(p + 32), load_u64(p + 40), load_u64(p + 48), load_u64(p + 56),
        load_u64(p + 64),
    )


def encode_heartbeat_response(
    term, read_context, lease_nonce, applied_index, digest_index, digest, disk_lag_ms, echo_us
):
    """Return a complete frame that answers a heartbeat: the eight numbers as u64, in this order."""
    cdef uint64_t fields[HEARTBEAT_RESPONSE_FIELDS]
    fields[0] = _u64(term)
    fields[1] = _u64(read_context)
    fields[2] = _u64(lease_nonce)
    fields[3] = _u64(applied_index)
    fields[4] = _u64(digest_index)
    fields[5] = _u64(digest)
    fields[6] = _u64(disk_lag_ms)
    fields[7] = _u64(echo_us)
    return _heartbeat_frame(HEARTBEAT_RESPONSE, fields, HEARTBEAT_RESPONSE_FIELDS)


def decode_heartbeat_response(head):
    """Return what `encode_heartbeat_response` was given, from the head of its frame."""
    cdef bytes checked = _as_bytes(head)
    cdef const uint8_t *p = _start(checked)
    if PyBytes_GET_SIZE(checked) != 8 * HEARTBEAT_RESPONSE_FIELDS:
        raise CorruptFrame(f"a heartbeat response of {PyBytes_GET_SIZE(checked)} bytes")
    return (
        load_u64(p), load_u64(p + 8), load_u64(p + 16), load_u64(p + 24),
        load_u64(p + 32), load_u64(p + 40), load_u64(p + 48), load_u64(p + 56),
    )


# -------------------------------------------------------------------------------------------------------------- quorum


cdef enum:
    FEW = 16  # More voters than anyone has; beyond, sorting in place of inserting pays.


cdef int _compare(const void *left, const void *right) noexcept nogil:
    cdef uint64_t a = (<const uint64_t *>left)[0]
    cdef uint64_t b = (<const uint64_t *>right)[0]
    return (a > b) - (a < b)


cdef void _sort(uint64_t *values, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t number
    cdef Py_ssize_t place
    cdef uint64_t value
    if count > FEW:
        qsort(values, count, sizeof(uint64_t), _compare)
        return
    for number in range(1, count):
        value = values[number]
        place = number
        while place > 0 and values[place - 1] > value:
            values[place] = values[place - 1]
            place -= 1
        values[place] = value


def quorum_index(matched):
    """Return the highest log index that a majority of one set of voters has stored (Raft §5.3)."""
    cdef list indexes = list(matched)
    cdef Py_ssize_t count = len(indexes)
    cdef Py_ssize_t number
    cdef uint64_t few[FEW]
    cdef uint64_t *values = few
    if count == 0:
        raise ValueError("a quorum of nobody decides nothing")
    if count > FEW:
        values = <uint64_t *>PyMem_Malloc(count * sizeof(uint64_t))
        if values == NULL:
            raise MemoryError
    try:
        for number in range(count):
            values[number] = _u64(indexes[number])
        _sort(values, count)
        return values[(count - 1) // 2]
    finally:
        if values != few:
            PyMem_Free(values)
