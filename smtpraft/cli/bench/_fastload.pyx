# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: autotestdict=False, auto_pickle=False
"""The load generator, compiled: the same as `_pureload`, which says what it does. One thread, epoll, no GIL.

What it costs is the same for every system it loads, and little: some microseconds a message, beside hundreds.
"""

from __future__ import annotations

from array import array

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.errno cimport EAGAIN, EINPROGRESS, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset, strerror

from smtpraft.cli.bench.loadplan import LoadFailed

cdef extern from *:
    """
    #ifdef Py_LIMITED_API /* there, what is a look into the object elsewhere is a call */
    #define PyBytes_GET_SIZE PyBytes_Size
    #define PyBytes_AS_STRING PyBytes_AsString
    #endif
    """

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int maxevents, int timeout)
    enum:
        EPOLLIN
        EPOLLOUT
        EPOLL_CTL_ADD
        EPOLL_CTL_MOD
        EPOLL_CLOEXEC

cdef extern from "<sys/socket.h>" nogil:
    ctypedef uint32_t socklen_t
    cdef struct sockaddr:
        pass
    int socket(int domain, int type, int protocol)
    int connect(int fd, const sockaddr *address, socklen_t size)
    int setsockopt(int fd, int level, int name, const void *value, socklen_t size)
    ssize_t recv(int fd, void *buffer, size_t size, int flags)
    ssize_t send(int fd, const void *buffer, size_t size, int flags)
    enum:
        AF_INET
        SOCK_STREAM
        SOCK_NONBLOCK
        SOCK_CLOEXEC
        MSG_NOSIGNAL

cdef extern from "<netinet/in.h>" nogil:
    cdef struct in_addr:
        uint32_t s_addr
    cdef struct sockaddr_in:
        uint16_t sin_family
        uint16_t sin_port
        in_addr sin_addr
    uint16_t htons(uint16_t value)
    uint32_t htonl(uint32_t value)
    enum:
        INADDR_LOOPBACK
        IPPROTO_TCP

cdef extern from "<netinet/tcp.h>" nogil:
    enum:
        TCP_NODELAY

cdef extern from "<unistd.h>" nogil:
    int close(int fd)

cdef extern from "<time.h>" nogil:
    cdef struct timespec:
        int64_t tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *now)
    enum:
        CLOCK_MONOTONIC
        CLOCK_THREAD_CPUTIME_ID

cdef enum:
    EVENTS = 256
    BUFFER = 20480  # a reply, or an HTTP/2 frame (16,384 at most, RFC 9113 §4.2) and its header
    COMMANDS = 6
    KEY_DIGITS = 16
    KEYS = 16
    REASON = 240
    SLICE_MS = 100  # so often Ctrl-C is heard

cdef enum Protocol:
    SMTP = 0
    FRAMED = 1
    GRPC = 2

cdef enum Fault:
    FINE
    REFUSED
    BROKEN
    STRANGE
    SYSTEM
    STUCK

cdef enum Kind:  # of HTTP/2 frames, RFC 9113 §6
    H2_DATA = 0
    H2_HEADERS = 1
    H2_RST_STREAM = 3
    H2_SETTINGS = 4
    H2_PING = 6
    H2_GOAWAY = 7

cdef struct Session:
    int fd
    int step
    bint writing  # asked epoll for EPOLLOUT
    bint answered  # a DATA frame of this stream has come
    uint32_t number
    uint32_t stream
    uint64_t count  # messages begun
    uint64_t sent_ns
    const uint8_t *out
    Py_ssize_t left
    Py_ssize_t have
    uint8_t *own  # FRAMED and GRPC: its copy of the message
    uint8_t buffer[BUFFER]

cdef struct Run:
    Protocol protocol
    int epoll
    Py_ssize_t sessions
    const uint16_t *ports
    Py_ssize_t port_count
    const uint8_t *commands[COMMANDS]
    Py_ssize_t sizes[COMMANDS]
    int last  # the step in which a message is answered
    bint anew
    Py_ssize_t key_at
    Py_ssize_t second_frame_at
    uint64_t limit
    uint64_t begun
    uint64_t ended
    uint64_t began_ns
    uint64_t deadline_ns
    uint64_t heard_ns
    Py_ssize_t open
    uint64_t *ended_ns
    uint64_t *wait_ns
    Fault fault
    int system
    char reason[REASON]


cdef inline uint64_t _now(int clock) noexcept nogil:
    cdef timespec now
    clock_gettime(clock, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec


cdef inline uint32_t _u32(const uint8_t *p) noexcept nogil:
    return <uint32_t>p[0] << 24 | <uint32_t>p[1] << 16 | <uint32_t>p[2] << 8 | p[3]


cdef inline void _put_u32(uint8_t *p, uint32_t value) noexcept nogil:
    p[0] = <uint8_t>(value >> 24)
    p[1] = <uint8_t>(value >> 16)
    p[2] = <uint8_t>(value >> 8)
    p[3] = <uint8_t>value


cdef void _fail(Run *run, Fault fault, const uint8_t *text, Py_ssize_t size) noexcept nogil:
    if run.fault != FINE:
        return
    run.fault = fault
    run.system = errno if fault == SYSTEM else 0
    size = min(size, REASON - 1)
    memcpy(run.reason, text, size)
    run.reason[size] = 0


cdef int _watch(Run *run, Session *session, int operation, bint writing) noexcept nogil:
    cdef epoll_event event
    session.writing = writing
    event.events = EPOLLIN | (EPOLLOUT if writing else 0)
    event.data.u64 = <uint64_t>session
    return epoll_ctl(run.epoll, operation, session.fd, &event)


cdef void _connect(Run *run, Session *session) noexcept nogil:
    cdef sockaddr_in address
    cdef int on = 1
    memset(&address, 0, sizeof(address))
    address.sin_family = AF_INET
    address.sin_port = htons(run.ports[session.number % run.port_count])
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK)
    session.step = 0
    session.have = 0
    session.left = 0
    session.stream = 1
    session.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if session.fd < 0:
        _fail(run, SYSTEM, b"socket", 6)
        return
    run.open += 1
    setsockopt(session.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on))
    if connect(session.fd, <sockaddr *>&address, sizeof(address)) < 0 and errno != EINPROGRESS:
        _fail(run, SYSTEM, b"connect", 7)
        return
    # SMTP begins with the server's greeting, the others with us, as soon as there is a connection.
    if _watch(run, session, EPOLL_CTL_ADD, run.protocol != SMTP) < 0:
        _fail(run, SYSTEM, b"epoll_ctl", 9)


cdef void _leave(Run *run, Session *session) noexcept nogil:
    if session.fd >= 0:
        close(session.fd)
        session.fd = -1
        run.open -= 1


cdef void _write(Run *run, Session *session) noexcept nogil:
    """Write what is left; what does not fit goes when there is room."""
    cdef ssize_t sent
    while session.left > 0:
        session.sent_ns = _now(CLOCK_MONOTONIC)  # in the end: just before the last piece, which has the final dot
        sent = send(session.fd, session.out, session.left, MSG_NOSIGNAL)
        if sent < 0:
            if errno == EINTR:
                continue
            if errno == EAGAIN:
                if not session.writing and _watch(run, session, EPOLL_CTL_MOD, True) < 0:
                    _fail(run, SYSTEM, b"epoll_ctl", 9)
                return
            _fail(run, SYSTEM, b"send", 4)
            return
        session.out += sent
        session.left -= sent
    if session.writing and _watch(run, session, EPOLL_CTL_MOD, False) < 0:
        _fail(run, SYSTEM, b"epoll_ctl", 9)


cdef inline void _say(Run *run, Session *session, const uint8_t *text, Py_ssize_t size) noexcept nogil:
    session.out = text
    session.left = size
    _write(run, session)


cdef inline bint _may_begin(Run *run, uint64_t now) noexcept nogil:
    return run.begun < run.limit and now < run.deadline_ns


cdef inline void _note(Run *run, Session *session, uint64_t now) noexcept nogil:
    run.ended_ns[run.ended] = now - run.began_ns
    run.wait_ns[run.ended] = now - session.sent_ns
    run.ended += 1


cdef void _digits(uint8_t *p, int count, uint64_t number) noexcept nogil:
    while count:
        count -= 1
        p[count] = <uint8_t>(48 + number % 10)
        number //= 10


cdef void _next_write(Run *run, Session *session, uint64_t now) noexcept nogil:
    """FRAMED and GRPC: send the next message, if there is to be one."""
    if not _may_begin(run, now):
        _leave(run, session)
        return
    run.begun += 1
    session.answered = False
    _digits(session.own + run.key_at, 6, session.number)
    _digits(session.own + run.key_at + 6, KEY_DIGITS - 6, session.count % KEYS)
    session.count += 1
    if run.protocol == GRPC:
        _put_u32(session.own + 5, session.stream)
        _put_u32(session.own + run.second_frame_at + 5, session.stream)
    _say(run, session, session.own, run.sizes[1])


# ---- what arrives ----


cdef void _smtp(Run *run, Session *session, uint64_t now) noexcept nogil:
    """Act on a reply once its last line is whole."""
    cdef uint8_t *buffer = session.buffer
    cdef Py_ssize_t start = session.have - 1
    if session.have < 4 or buffer[session.have - 1] != 10:
        return
    while start > 0 and buffer[start - 1] != 10:
        start -= 1
    if session.have - start < 4 or buffer[start + 3] == 45:  # "250-": more of this reply is to come
        return
    if buffer[start] != (51 if session.step == 4 else 50):
        _fail(run, REFUSED, buffer + start, session.have - start - 1)
        return
    session.have = 0
    if session.step == 6:  # QUIT is answered
        _leave(run, session)
        if _may_begin(run, now):
            _connect(run, session)
        return
    if session.step == run.last:
        _note(run, session, now)
        session.step = 6 if run.anew or not _may_begin(run, now) else 1
    elif session.step == 1 and not _may_begin(run, now):
        session.step = 6
    if session.step == 6:
        _say(run, session, run.commands[5], run.sizes[5])
        return
    if session.step == 1:
        run.begun += 1
    session.step += 1
    _say(run, session, run.commands[session.step - 1], run.sizes[session.step - 1])


cdef void _framed(Run *run, Session *session, uint64_t now) noexcept nogil:
    """A reply is 12 bytes: a u32 that is 0 if the write is stored, and its index."""
    if session.have < 12:
        return
    if session.have > 12 or _u32(session.buffer) != 0:
        _fail(run, REFUSED, b"a write was not stored", 22)
        return
    session.have = 0
    _note(run, session, now)
    _next_write(run, session, now)


cdef void _grpc(Run *run, Session *session, uint64_t now) noexcept nogil:
    """Frames of HTTP/2: the answer is HEADERS, DATA and HEADERS that end the stream; an error has no DATA."""
    cdef uint8_t *frame = session.buffer
    cdef Py_ssize_t left = session.have
    cdef Py_ssize_t size
    cdef uint8_t reply[17]
    cdef bint done = False
    while left >= 9:
        size = 9 + (<Py_ssize_t>frame[0] << 16 | <Py_ssize_t>frame[1] << 8 | frame[2])
        if size > BUFFER:
            _fail(run, STRANGE, b"an HTTP/2 frame that is too large", 33)
            return
        if left < size:
            break
        if (frame[3] == H2_SETTINGS or frame[3] == H2_PING) and not frame[4] & 1:
            memset(reply, 0, 17)
            reply[3] = frame[3]
            reply[4] = 1
            if frame[3] == H2_PING:
                reply[2] = 8
                memcpy(reply + 9, frame + 9, 8)
            if session.left or send(session.fd, reply, 9 + reply[2], MSG_NOSIGNAL) != 9 + reply[2]:
                _fail(run, STRANGE, b"no room to answer an HTTP/2 frame", 33)
                return
        elif frame[3] == H2_GOAWAY or frame[3] == H2_RST_STREAM:
            _fail(run, REFUSED, b"the server ended the stream", 27)
            return
        elif frame[3] == H2_DATA or frame[3] == H2_HEADERS:
            if _u32(frame + 5) != session.stream:
                _fail(run, STRANGE, b"a stream that is not ours", 25)
                return
            session.answered |= frame[3] == H2_DATA
            done = frame[4] & 1
        frame += size
        left -= size
        if done:
            break
    if frame != session.buffer:
        memmove(session.buffer, frame, left)
        session.have = left
    if not done:
        return
    if not session.answered:
        _fail(run, REFUSED, b"a write was not stored", 22)
        return
    session.stream += 2
    _note(run, session, now)
    _next_write(run, session, now)


cdef void _readable(Run *run, Session *session) noexcept nogil:
    cdef ssize_t got
    cdef uint64_t now
    if session.have == BUFFER:
        _fail(run, STRANGE, b"a reply without end", 19)
        return
    got = recv(session.fd, session.buffer + session.have, BUFFER - session.have, 0)
    now = _now(CLOCK_MONOTONIC)
    if got < 0:
        if errno != EAGAIN and errno != EINTR:
            _fail(run, SYSTEM, b"recv", 4)
        return
    if got == 0:
        _fail(run, BROKEN, b"the server closed the connection", 32)
        return
    session.have += got
    run.heard_ns = now
    if run.protocol == SMTP:
        _smtp(run, session, now)
    elif run.protocol == FRAMED:
        _framed(run, session, now)
    else:
        _grpc(run, session, now)


cdef void _writable(Run *run, Session *session) noexcept nogil:
    cdef ssize_t sent
    if session.left or run.protocol == SMTP or session.step:
        _write(run, session)
        return
    session.step = 1
    if _watch(run, session, EPOLL_CTL_MOD, False) < 0:
        _fail(run, SYSTEM, b"epoll_ctl", 9)
        return
    if run.sizes[0]:
        sent = send(session.fd, run.commands[0], run.sizes[0], MSG_NOSIGNAL)
        if sent != run.sizes[0]:
            _fail(run, SYSTEM, b"send", 4)
            return
    _next_write(run, session, _now(CLOCK_MONOTONIC))


cdef void _turns(Run *run, uint64_t stuck_ns) noexcept nogil:
    """Work for some `SLICE_MS`, or until it is over."""
    cdef epoll_event events[EVENTS]
    cdef Session *session
    cdef int count
    cdef int place
    cdef uint64_t end = _now(CLOCK_MONOTONIC) + <uint64_t>SLICE_MS * 1000000
    cdef uint64_t now = 0
    while run.open > 0 and run.fault == FINE and now < end:
        count = epoll_wait(run.epoll, events, EVENTS, SLICE_MS)
        if count < 0 and errno != EINTR:
            _fail(run, SYSTEM, b"epoll_wait", 10)
        for place in range(count):
            session = <Session *>events[place].data.u64
            if events[place].events & EPOLLOUT:
                _writable(run, session)
            if run.fault == FINE and session.fd >= 0 and events[place].events & ~<uint32_t>EPOLLOUT:
                _readable(run, session)
            if run.fault != FINE:
                return
        now = _now(CLOCK_MONOTONIC)
        if now - run.heard_ns > stuck_ns:
            _fail(run, STUCK, b"no reply", 8)


def run_load(int protocol, list ports, list commands, int sessions, uint64_t messages, double seconds, bint anew,
             Py_ssize_t key_at, Py_ssize_t second_frame_at, double stuck_s):
    """See `_pureload.run_load`."""
    cdef Run run
    cdef Session *all_sessions
    cdef uint16_t checked_ports[64]
    cdef Py_ssize_t number
    cdef uint64_t cpu_ns
    cdef uint64_t stuck_ns = <uint64_t>(stuck_s * 1e9)
    cdef bytes command
    if not 0 < len(ports) <= 64 or not 0 < sessions <= 10000 or not 0 < messages <= 100000000:
        raise ValueError("1 to 64 ports, 1 to 10,000 sessions and 1 to 100,000,000 messages")
    if len(commands) != (COMMANDS if protocol == SMTP else 2):
        raise ValueError(f"{len(commands)} commands")
    memset(&run, 0, sizeof(run))
    run.protocol = <Protocol>protocol
    for number in range(len(ports)):
        checked_ports[number] = ports[number]
    run.ports = checked_ports
    run.port_count = len(ports)
    for number in range(len(commands)):
        command = commands[number]
        run.commands[number] = <const uint8_t *>PyBytes_AS_STRING(command)
        run.sizes[number] = PyBytes_GET_SIZE(command)
    if protocol != SMTP and (key_at < 0 or key_at + KEY_DIGITS > run.sizes[1]):
        raise ValueError("the key lies outside the message")
    if protocol == GRPC and not 0 < second_frame_at <= run.sizes[1] - 9:
        raise ValueError("the second frame lies outside the message")
    run.last = 5
    run.anew = anew
    run.key_at = key_at
    run.second_frame_at = second_frame_at
    run.limit = messages
    run.sessions = min(<uint64_t>sessions, messages)
    all_sessions = <Session *>PyMem_Malloc(run.sessions * sizeof(Session))
    # Pages that are never written to take no memory.
    run.ended_ns = <uint64_t *>PyMem_Malloc(messages * sizeof(uint64_t))
    run.wait_ns = <uint64_t *>PyMem_Malloc(messages * sizeof(uint64_t))
    run.epoll = epoll_create1(EPOLL_CLOEXEC)
    if all_sessions != NULL:
        for number in range(run.sessions):
            all_sessions[number].fd = -1
            all_sessions[number].own = NULL
    try:
        if all_sessions == NULL or run.ended_ns == NULL or run.wait_ns == NULL or run.epoll < 0:
            raise MemoryError
        for number in range(run.sessions):
            all_sessions[number].number = <uint32_t>number
            all_sessions[number].count = all_sessions[number].sent_ns = 0
            all_sessions[number].writing = False
            if protocol != SMTP:
                all_sessions[number].own = <uint8_t *>PyMem_Malloc(run.sizes[1])
                if all_sessions[number].own == NULL:
                    raise MemoryError
                memcpy(all_sessions[number].own, run.commands[1], run.sizes[1])
        cpu_ns = _now(CLOCK_THREAD_CPUTIME_ID)
        run.began_ns = run.heard_ns = _now(CLOCK_MONOTONIC)
        run.deadline_ns = run.began_ns + <uint64_t>(seconds * 1e9)
        for number in range(run.sessions):
            _connect(&run, &all_sessions[number])
        while run.open > 0 and run.fault == FINE:
            with nogil:
                _turns(&run, stuck_ns)
            PyErr_CheckSignals()
        cpu_ns = _now(CLOCK_THREAD_CPUTIME_ID) - cpu_ns
        if run.fault != FINE:
            raise _failed(&run)
        return (
            _numbers(run.ended_ns, <Py_ssize_t>run.ended), _numbers(run.wait_ns, <Py_ssize_t>run.ended), cpu_ns / 1e9
        )
    finally:
        if all_sessions != NULL:
            for number in range(run.sessions):
                if all_sessions[number].fd >= 0:
                    close(all_sessions[number].fd)
                PyMem_Free(all_sessions[number].own)
        if run.epoll >= 0:
            close(run.epoll)
        PyMem_Free(all_sessions)
        PyMem_Free(run.ended_ns)
        PyMem_Free(run.wait_ns)


cdef object _numbers(const uint64_t *values, Py_ssize_t count):
    numbers = array("Q")
    numbers.frombytes(PyBytes_FromStringAndSize(<const char *>values, count * sizeof(uint64_t)))
    return numbers


cdef object _failed(Run *run):
    cdef str text = (<bytes>run.reason).decode("utf-8", "replace").strip()
    if run.fault == SYSTEM:
        return LoadFailed(f"{text}: {strerror(run.system).decode()}")
    if run.fault == REFUSED:
        return LoadFailed(f"refused: {text}")
    if run.fault == STUCK:
        return LoadFailed("no reply from any session for too long")
    return LoadFailed(text)
