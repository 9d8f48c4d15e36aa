# What is asked of entries once they are committed, compiled: the twin of `commands` and `proposed` in `_purecodec`.
# Included by `_fastlog.pyx`, after `_fastcodec.pxi`.

cdef inline const uint8_t *_record_at(const uint8_t *p, const uint8_t *end) except NULL:
    """Return where the record at `p` ends. It was verified before; that it lies within its bytes is looked at again."""
    if end - p < HEADER or load_u32(p + 4) < HEADER or <uint64_t>load_u32(p + 4) > <uint64_t>(end - p):
        raise CorruptEntry("no whole entry")
    return p + load_u32(p + 4)


cdef inline bint _is_command(const uint8_t *p, const uint8_t *end) noexcept:
    if p[32] != NORMAL or end - p < HEADER + COMMAND_HEADER or p[HEADER] != COMMAND:
        return False
    return load_u64(p + HEADER + 1) != 0


cdef object _in_one_piece(object block):
    """Return `block` itself when it is `bytes`, a view of its bytes when they lie in one piece, else a copy."""
    if PyBytes_Check(block):
        return block
    view = memoryview(block)
    return view.cast("B") if view.c_contiguous else bytes(view)


def commands(block, start=0):
    """See `_purecodec.commands`."""
    cdef uint64_t at = _u64(start)
    cdef const uint8_t[::1] view = _in_one_piece(block)
    cdef Py_ssize_t size = view.shape[0]
    cdef const uint8_t *p
    cdef const uint8_t *end
    cdef const uint8_t *stop
    cdef const uint8_t *data
    cdef uint64_t session, seq, done_below
    cdef list found = []
    if at >= <uint64_t>size:
        return found, at
    p = &view[0] + at
    stop = &view[0] + size
    while p < stop and PyList_GET_SIZE(found) < TOGETHER:
        end = _record_at(p, stop)
        data = p + HEADER
        session = seq = done_below = 0
        if _is_command(p, end):
            session, seq, done_below = load_u64(data + 1), load_u64(data + 9), load_u64(data + 17)
            data += COMMAND_HEADER
        found.append((
            load_u64(p + 16),
            load_u64(p + 8),
            load_u64(p + 24),
            load_u32(p),
            p[32],
            session,
            seq,
            done_below,
            PyBytes_FromStringAndSize(<const char *>data, end - data),
        ))
        p = end
    return found, p - &view[0]


def proposed(block, session):
    """See `_purecodec.proposed`."""
    cdef uint64_t wanted = _u64(session)
    cdef const uint8_t[::1] view = _in_one_piece(block)
    cdef Py_ssize_t size = view.shape[0]
    cdef const uint8_t *p
    cdef const uint8_t *end
    cdef const uint8_t *stop
    cdef const uint8_t *payload
    cdef list found = []
    if size == 0:
        return found
    p = &view[0]
    stop = p + size
    while p < stop:
        end = _record_at(p, stop)
        payload = p + HEADER
        if not _is_command(p, end):
            found.append((load_u64(p + 16), p[32], PyBytes_FromStringAndSize(<const char *>payload, end - payload)))
        elif load_u64(payload + 1) == wanted:
            found.append((load_u64(p + 16), load_u64(payload + 9), None))
        p = end
    return found
