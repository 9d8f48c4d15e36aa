from smtpraft.smtp.memory cimport MemoryBudget


cdef class FastConnection:
    cdef dict __dict__
    cdef public object loop
    cdef public str hostname
    cdef public object transport
    cdef public object session
    cdef public object envelope
    cdef public object _host
    cdef public object _handler
    cdef public object _settings
    cdef public object _statistics
    cdef public MemoryBudget _memory
    cdef public object _buffer
    cdef public object _lines
    cdef public list _replies
    cdef public object _content
    cdef public int _fd
    cdef public double _content_since
    cdef public bint _busy
    cdef public bint _handed_over
    cdef public bint _reading_paused
    cdef public bint _writing_paused
    cdef public bint _eof
    cdef public bint _lost
    cdef public bint _closing
    cdef public bint _admitted
    cdef public long long _reserved_bytes
    cdef public object _request
    cdef public object _request_timer
    cdef public double _command_s
    cdef public double _command_stressed_s
    cdef public double _waiting_since
    cdef public double _wait_max_s
    cdef public double _wait_max_stressed_s

    cdef _run(self, Py_ssize_t received=*, object go_on=*, bint has_room=*)
    cdef _go_on(self)
    cdef _take_content(self, Py_ssize_t count)
    cdef _idle(self)
    cdef _pause_reading(self)
    cdef _start_wait(self, double wait_max_s)
    cdef _wait_for_command(self)
    cdef _flush(self)
    cdef bint _reserve(self, long long size_bytes, bint begun) except -1
    cdef _release(self)
    cdef _finish(self, str last_reply, bint polite)
