from smtpraft.smtp.protocol cimport FastConnection


cdef class CommandSession(FastConnection):
    cdef _go_on(self)
    cdef _run_command(self, bytes verb, object argument, Py_ssize_t line_bytes)
    cpdef _begin_content(self, bint has_room)
    cdef _take_content(self, Py_ssize_t count)
    cdef _took_content(self, object content, bint complete)
    cdef _kept_content(self, object content, bint complete)
    cdef _answer_message(self, object envelope, str reply, double dot_at)
