"""The load generator in plain Python: the specification of `_fastload`, and what runs where that is not compiled.

Sessions in one thread. Each has one message under way: it sends the next when the last one is answered. A message's
wait counts from the write that holds its last byte to the arrival of the whole reply.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import struct
import time
from array import array
from typing import Final

from smtpraft.cli.bench.loadplan import (
    FRAMED,
    GRPC,
    KEY_DIGITS,
    KEYS,
    MESSAGES_MAX,
    PORTS_MAX,
    SESSIONS_MAX,
    SMTP,
    LoadFailed,
)

_QUIT: Final = 6
_ANSWERED: Final = 5
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7  # RFC 9113 §6
_SLICE_S: Final = 0.1
_BUFFER_BYTES: Final = 20480


def run_load(
    protocol: int,
    ports: list[int],
    commands: list[bytes],
    sessions: int,
    messages: int,
    seconds: float,
    anew: bool,
    key_at: int,
    second_frame_at: int,
    stuck_s: float,
) -> tuple[array[int], array[int], float]:
    """Send over `sessions`, spread over `ports`, for `seconds` or until `messages` have begun.

    `anew`: a session carries one message and is followed by another (SMTP). Where in a message its key is (16 digits,
    the session's number and which of its keys) and its second HTTP/2 frame, `key_at` and `second_frame_at` say.

    Returns when each message was answered and how long it waited, in ns, the former since the start; and the seconds
    of CPU that this took here.

    Raises:
        LoadFailed: a refusal, a broken session, or silence of all sessions for `stuck_s`.
        ValueError: the plan makes no sense.
    """
    if not 0 < len(ports) <= PORTS_MAX or not 0 < sessions <= SESSIONS_MAX or not 0 < messages <= MESSAGES_MAX:
        raise ValueError("1 to 64 ports, 1 to 10,000 sessions and 1 to 100,000,000 messages")
    if len(commands) != (6 if protocol == SMTP else 2):
        raise ValueError(f"{len(commands)} commands")
    if protocol != SMTP and not 0 <= key_at <= len(commands[1]) - KEY_DIGITS:
        raise ValueError("the key lies outside the message")
    if protocol == GRPC and not 0 < second_frame_at <= len(commands[1]) - 9:
        raise ValueError("the second frame lies outside the message")
    run = _Run(protocol, ports, commands, messages, seconds, anew, key_at, second_frame_at)
    cpu_s = time.thread_time()
    try:
        for number in range(min(sessions, messages)):
            run.connect(_Session(number))
        while run.open:
            run.turn(stuck_s)
    except OSError as error:
        raise LoadFailed(f"{error.strerror}") from error
    finally:
        run.close()
    return run.ended_ns, run.wait_ns, time.thread_time() - cpu_s


class _Session:
    def __init__(self, number: int) -> None:
        self.number = number
        self.count = 0
        self.socket = socket.socket()
        self.step = 0
        self.stream = 1
        self.answered = False
        self.writing = False
        self.sent_ns = 0
        self.left = memoryview(b"")
        self.buffer = b""


class _Run:
    def __init__(
        self,
        protocol: int,
        ports: list[int],
        commands: list[bytes],
        messages: int,
        seconds: float,
        anew: bool,
        key_at: int,
        second_frame_at: int,
    ) -> None:
        self._protocol, self._ports, self._commands, self._limit, self._anew = protocol, ports, commands, messages, anew
        self._key_at, self._second_frame_at = key_at, second_frame_at
        self._hear = {SMTP: self._smtp, FRAMED: self._framed, GRPC: self._grpc}[protocol]
        self._selector = selectors.DefaultSelector()
        self._sockets: set[socket.socket] = set()
        self._begun = 0
        self._began_ns = self._heard_ns = time.monotonic_ns()
        self._deadline_ns = self._began_ns + int(seconds * 1e9)
        self.ended_ns = array("Q")
        self.wait_ns = array("Q")

    @property
    def open(self) -> int:
        return len(self._sockets)

    def close(self) -> None:
        for each in self._sockets:
            each.close()
        self._selector.close()

    def connect(self, session: _Session) -> None:
        session.socket.close()
        session.socket = socket.socket()
        session.step, session.stream, session.buffer = 0, 1, b""
        session.socket.setblocking(False)
        session.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sockets.add(session.socket)
        code = session.socket.connect_ex(("127.0.0.1", self._ports[session.number % len(self._ports)]))
        if code not in (0, errno.EINPROGRESS):
            raise LoadFailed(f"connect: {os.strerror(code)}")
        # SMTP begins with the server's greeting, the others with us, as soon as there is a connection.
        session.writing = self._protocol != SMTP
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if session.writing else 0)
        self._selector.register(session.socket, events, session)

    def turn(self, stuck_s: float) -> None:
        for key, events in self._selector.select(_SLICE_S):
            session: _Session = key.data
            if events & selectors.EVENT_WRITE:
                self._writable(session)
            if events & selectors.EVENT_READ and session.socket in self._sockets:
                self._readable(session)
        if time.monotonic_ns() - self._heard_ns > stuck_s * 1e9:
            raise LoadFailed("no reply from any session for too long")

    def _leave(self, session: _Session) -> None:
        self._selector.unregister(session.socket)
        self._sockets.remove(session.socket)
        session.socket.close()

    def _say(self, session: _Session, data: bytes) -> None:
        session.left = memoryview(data)
        self._write(session)

    def _write(self, session: _Session) -> None:
        while session.left:
            session.sent_ns = time.monotonic_ns()
            try:
                session.left = session.left[session.socket.send(session.left) :]
            except BlockingIOError:
                self._want_room(session, True)
                return
        self._want_room(session, False)

    def _want_room(self, session: _Session, wanted: bool) -> None:
        if session.writing != wanted:
            session.writing = wanted
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wanted else 0)
            self._selector.modify(session.socket, events, session)

    def _writable(self, session: _Session) -> None:
        if session.left or self._protocol == SMTP or session.step:
            self._write(session)
            return
        if code := session.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise LoadFailed(f"connect: {os.strerror(code)}")
        session.step = 1
        if self._commands[0]:
            session.socket.sendall(self._commands[0])
        self._next_write(session, time.monotonic_ns())

    def _readable(self, session: _Session) -> None:
        try:
            arrived = session.socket.recv(_BUFFER_BYTES)
        except BlockingIOError:
            return
        now = self._heard_ns = time.monotonic_ns()
        if not arrived:
            raise LoadFailed("the server closed the connection")
        session.buffer += arrived
        self._hear(session, now)

    def _may_begin(self, now: int) -> bool:
        return self._begun < self._limit and now < self._deadline_ns

    def _note(self, session: _Session, now: int) -> None:
        self.ended_ns.append(now - self._began_ns)
        self.wait_ns.append(now - session.sent_ns)

    def _next_write(self, session: _Session, now: int) -> None:
        """FRAMED and GRPC: send the next message, if there is to be one."""
        if not self._may_begin(now):
            self._leave(session)
            return
        self._begun += 1
        session.answered = False
        message = bytearray(self._commands[1])
        message[self._key_at : self._key_at + KEY_DIGITS] = b"%06d%010d" % (session.number, session.count % KEYS)
        session.count += 1
        if self._protocol == GRPC:
            struct.pack_into(">I", message, 5, session.stream)
            struct.pack_into(">I", message, self._second_frame_at + 5, session.stream)
        self._say(session, bytes(message))

    # ---- what arrives ----

    def _smtp(self, session: _Session, now: int) -> None:
        last = session.buffer[session.buffer.rfind(b"\n", 0, -1) + 1 :]
        if len(last) < 4 or not last.endswith(b"\n") or last[3:4] == b"-":
            return  # more of this reply is to come
        if last[:1] != (b"3" if session.step == 4 else b"2"):
            raise LoadFailed(f"refused: {last.decode('utf-8', 'replace').strip()}")
        session.buffer = b""
        if session.step == _QUIT:
            self._leave(session)
            if self._may_begin(now):
                self.connect(session)
            return
        if session.step == _ANSWERED:
            self._note(session, now)
            session.step = _QUIT if self._anew or not self._may_begin(now) else 1
        elif session.step == 1 and not self._may_begin(now):
            session.step = _QUIT
        if session.step == _QUIT:
            self._say(session, self._commands[5])
            return
        if session.step == 1:
            self._begun += 1
        session.step += 1
        self._say(session, self._commands[session.step - 1])

    def _framed(self, session: _Session, now: int) -> None:
        """A reply is 12 bytes: a u32 that is 0 if the write is stored, and its index."""
        if len(session.buffer) < 12:
            return
        if len(session.buffer) > 12 or session.buffer[:4] != bytes(4):
            raise LoadFailed("refused: a write was not stored")
        session.buffer = b""
        self._note(session, now)
        self._next_write(session, now)

    def _grpc(self, session: _Session, now: int) -> None:
        """Frames of HTTP/2: the answer is HEADERS, DATA and HEADERS that end the stream; an error has no DATA."""
        done = False
        while len(session.buffer) >= 9 and not done:
            size = 9 + int.from_bytes(session.buffer[:3], "big")
            kind, flags, stream = struct.unpack_from(">BBI", session.buffer, 3)
            if size > _BUFFER_BYTES:
                raise LoadFailed("an HTTP/2 frame that is too large")
            if len(session.buffer) < size:
                break
            payload, session.buffer = session.buffer[9:size], session.buffer[size:]
            if kind in (_SETTINGS, _PING) and not flags & 1:
                answer = payload[:8] if kind == _PING else b""
                reply = struct.pack(">HBBBI", 0, len(answer), kind, 1, 0) + answer
                if session.left or session.socket.send(reply) != len(reply):
                    raise LoadFailed("no room to answer an HTTP/2 frame")
            elif kind in (_GOAWAY, _RST_STREAM):
                raise LoadFailed("refused: the server ended the stream")
            elif kind in (_DATA, _HEADERS):
                if stream != session.stream:
                    raise LoadFailed("a stream that is not ours")
                session.answered |= kind == _DATA
                done = bool(flags & 1)
        if not done:
            return
        if not session.answered:
            raise LoadFailed("refused: a write was not stored")
        session.stream += 2
        self._note(session, now)
        self._next_write(session, now)
