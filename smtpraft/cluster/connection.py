"""One TCP connection between two nodes: handshake, then frames one way, and a way to notice that it is dead.

The node that dialled sends; the node that accepted receives. Back flow only pongs and a reason for closing. Frames that
belong to the connection itself (the head is all there is, big endian):

    240 PING    nothing         from the dialler, one at a time
    241 PONG    nothing         the answer
    242 CLOSE   text (UTF-8)    either side, before it closes for a reason of its own while its process lives on
    243 ANSWER  see `asking.py` to a dialler that wants to know who is here, and then the connection is closed
    244 REMOVED index u64       to a dialler that is a member no more since that entry, likewise

A kernel that answers is no proof of a process that works, and a silent path tells nobody anything. So a connection
counts as dead when, for `silence_limit_s`, neither a byte came back nor, while bulk still waits in front of our ping,
the other kernel acknowledged any. TCP_USER_TIMEOUT says the same to our own kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol, cast

from smtpraft.cluster import direct
from smtpraft.cluster.addresses import format_address
from smtpraft.cluster.handshake import HANDSHAKE_TIMEOUT_S, Acceptor, Channel, Dialler, Established, Reason, Refused
from smtpraft.cluster.wire import FRAME_TRANSPORT_FIRST
from smtpraft.fastlog import FRAME_HEADER_BYTES, CorruptEntry, CorruptFrame, FrameDecoder, encode_frame
from smtpraft.types import NodeId

log = logging.getLogger(__name__)

FRAME_PING: Final = 240
FRAME_PONG: Final = 241
FRAME_CLOSE: Final = 242
FRAME_REMOVED: Final = 244

CONTROL_FRAME_BYTES_MAX: Final = 16 * 1024
CONTROL_BUFFER_BYTES_MAX: Final = 64 * 1024
"""A peer that has not taken this much of heartbeats will not be helped by more of them."""

LAST_WORDS_TIMEOUT_S: Final = 1.0
ROUND_TRIPS_KEPT: Final = 8  # four seconds' worth: a machine is rarely busy for so long without a break

_PING: Final = encode_frame(FRAME_PING, b"")
_PONG: Final = encode_frame(FRAME_PONG, b"")
_CLOSE_TEXT_BYTES_MAX: Final = 240
_NO_DELAY_PRIORITY: Final = 6  # the highest SO_PRIORITY that needs no privilege: the first band of the default queue
_SIOCOUTQ: Final = 0x5411  # linux/sockios.h: bytes in the send queue that the other side has not acknowledged


class Owner(Protocol):
    """Whom a connection tells. Nothing is said before `established`, and nothing after `lost`."""

    def established(self, connection: Connection, who: Established) -> bool:
        """The handshake is done. False: not wanted after all; the connection is gone already."""

    def frames_received(self, connection: Connection, frames: list[tuple[int, bytes, bytes]]) -> None:
        """All frames of one read, none of them the connection's own."""

    def lost(self, connection: Connection) -> None:
        """The connection is down; `failure`, `by_peer` and `refusal` say why."""

    def told_removed(self, connection: Connection, index: int) -> None:
        """The other side, which is a member, says that this node is none since the entry at `index`."""

    def failed(self, error: Exception) -> None:
        """A bug, ours or the receiver's: the node must not go on as if nothing had happened."""


class Connection(asyncio.Protocol):
    """Either end, according to `handshake`."""

    def __init__(
        self,
        owner: Owner,
        handshake: Dialler | Acceptor,
        *,
        loop: asyncio.AbstractEventLoop,
        frame_bytes_max: int,
        buffered_bytes_max: int,
        silence_limit_s: float,
        handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
    ) -> None:
        self.who: Established | None = None
        self.address = "?"
        self.failure = ""
        """Why it went down, for the log; empty while it is up."""
        self.by_peer = False
        """It went down because the other side's kernel said so: its process closed it, or ended."""
        self.refusal: Refused | None = None
        self.settled = asyncio.Event()
        """The handshake is over, one way or the other: `who` is set, or `failure`."""
        self.closed = asyncio.Event()
        self.established_at = 0.0
        self.sent_bytes = 0
        self.sent_frames = 0
        self.received_bytes = 0
        self.received_frames = 0
        self.round_trips_s: deque[float] = deque(maxlen=ROUND_TRIPS_KEPT)
        """Of the last pings."""
        self._owner = owner
        self._handshake: Dialler | Acceptor | None = handshake
        self.dialled = isinstance(handshake, Dialler)
        self._loop = loop
        self._frame_bytes_max = frame_bytes_max
        self._buffered_bytes_max = buffered_bytes_max
        self._silence_limit_s = silence_limit_s
        self._handshake_timeout_s = handshake_timeout_s
        self._transport: asyncio.Transport | None = None
        self._socket: socket.socket | None = None
        self._fd = -1
        self._deadline: asyncio.TimerHandle | None = None
        self._decoder: FrameDecoder | None = None
        self._alive_at = 0.0
        self._pinged_at = 0.0
        self._ping_end = 0
        """Where in our stream the ping ends that has no answer yet; 0 = there is none."""
        self._acknowledged = 0

    # --- sending -------------------------------------------------------------------------------------------------

    def send(self, type: int, head: bytes, spans: Sequence[bytes | memoryview]) -> bool:
        """Send one frame; False (and nothing sent) when it would not fit into the buffer, or the connection is down.

        Raises:
            ValueError: the frame is larger than any peer would take.
        """
        transport = self._transport
        if transport is None or self.failure:
            return False
        tail_bytes = sum(map(len, spans))
        header = encode_frame(type, head, tail_bytes)
        size = len(header) + tail_bytes
        if size - FRAME_HEADER_BYTES > self._frame_bytes_max:
            raise ValueError(f"a frame of {size} bytes; at most {self._frame_bytes_max} may travel")
        if transport.get_write_buffer_size() + size > self._buffered_bytes_max:
            return False
        self.sent_bytes += size
        self.sent_frames += 1
        if tail_bytes:
            direct.write_parts(transport, self._fd, [header, *spans], size)
        else:
            direct.write(transport, self._fd, header)
        return True

    def send_frame(self, frame: bytes) -> bool:
        """Send one frame that is complete already, under the same conditions."""
        transport = self._transport
        if transport is None or self.failure:
            return False
        if transport.get_write_buffer_size() + len(frame) > self._buffered_bytes_max:
            return False
        self.sent_bytes += len(frame)
        self.sent_frames += 1
        direct.write(transport, self._fd, frame)
        return True

    @property
    def buffered_bytes(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    @property
    def direction(self) -> str:
        """For the log."""
        return "out" if self.dialled else "in"

    # --- closing -------------------------------------------------------------------------------------------------

    def abort(self, failure: str, *, tell: bool = True) -> None:
        """Close at once; what is buffered is lost. `tell`: say why to the other side, if it still takes anything."""
        if self.failure:
            return
        self.failure = failure
        if self._transport is None:
            return  # `connection_made` sees to it, if it is still to come
        if tell and self.who is not None and not self._transport.get_write_buffer_size():
            text = failure.encode("utf-8", "backslashreplace")[:_CLOSE_TEXT_BYTES_MAX]
            self._close_after(encode_frame(FRAME_CLOSE, text))
        else:
            self._transport.abort()

    def dismiss(self, last_words: bytes, failure: str) -> None:
        """Send one last frame to whoever dialled, and close."""
        if not self.failure:
            self.failure = failure
            self._close_after(last_words)

    def finish(self) -> None:
        """Send what is buffered, then close. The caller waits for `closed`, not for ever, and aborts."""
        if self.failure or self._transport is None:
            return
        self.failure = "closed here"
        # Half-close: a full close with a pong unread would reset the connection, and what we sent last could be lost.
        with contextlib.suppress(OSError, NotImplementedError):
            self._transport.write_eof()
            return
        self._transport.close()

    def _close_after(self, last_words: bytes) -> None:
        assert self._transport is not None
        self._transport.write(last_words)
        self._transport.close()
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._loop.call_later(LAST_WORDS_TIMEOUT_S, self.give_up)

    def give_up(self) -> None:
        """End a `finish` or an `abort` that the other side holds up."""
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio.Protocol ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's only looks like one
        self._transport = transport
        self._socket = transport.get_extra_info("socket")
        self._fd = direct.descriptor(transport)
        peer_name = transport.get_extra_info("peername")
        if isinstance(peer_name, tuple):
            self.address = format_address(peer_name[0], peer_name[1])
        if peer_name is not None and peer_name == transport.get_extra_info("sockname"):
            # Dialling a port of the ephemeral range that nobody listens on can hit the very port we dial from.
            self.abort("connected to itself")
            return
        transport.set_write_buffer_limits(high=self._buffered_bytes_max)
        self._set_socket_options()
        if self.failure:
            transport.abort()
            return
        self._deadline = self._loop.call_later(self._handshake_timeout_s, self._handshake_timed_out)
        assert self._handshake is not None
        greeting = self._handshake.start()
        if greeting:
            transport.write(greeting)

    def data_received(self, data: bytes) -> None:
        if self.failure:
            return
        self.received_bytes += len(data)
        try:
            if self._handshake is not None:
                data = self._shake_hands(data)
                if not data:
                    return
            self._alive_at = self._loop.time()
            assert self._decoder is not None
            frames = self._decoder.feed(data)
            if frames:
                self._take(frames)
        except (CorruptFrame, CorruptEntry) as error:
            log.warning("closing a connection that carries garbage %s reason=%s", self._facts(), error)
            self.abort(f"garbage: {error}")
        except Exception as error:
            self.abort(f"internal error: {error!r}")
            self._owner.failed(error)

    def eof_received(self) -> bool:
        if not self.failure:
            self.failure = "closed by peer"
            self.by_peer = True
        if self._transport is not None:
            self._transport.abort()  # nothing that is still buffered will be read
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if not self.failure:
            self.failure = str(exc) if exc is not None else "closed"
            self.by_peer = isinstance(exc, ConnectionError)
        self._transport = None
        self._socket = None
        self._fd = -1
        self._decoder = None
        self.settled.set()
        self._owner.lost(self)
        self.closed.set()

    # --- handshake -----------------------------------------------------------------------------------------------

    def _shake_hands(self, data: bytes) -> bytes:
        """Feed the handshake; return the bytes of frames that follow it."""
        handshake = self._handshake
        assert handshake is not None
        assert self._transport is not None
        try:
            answer = handshake.receive(data)
        except Refused as refused:
            self.refusal = refused
            self.failure = f"refused{' by peer' if refused.by_peer else ''}: {refused.text}"
            self._close_after(refused.answer)
            return b""
        if answer:
            self._transport.write(answer)
        who = handshake.established
        if who is None:
            return b""
        assert self._deadline is not None
        self._deadline.cancel()
        self._deadline = None
        self._handshake = None
        self.who = who
        self.established_at = self._alive_at = self._loop.time()
        small = who.channel is Channel.CONTROL
        self._decoder = FrameDecoder(CONTROL_FRAME_BYTES_MAX if small else self._frame_bytes_max)
        if self.dialled and who.channel is Channel.CONTROL:
            self._prefer()
        self.settled.set()
        return who.rest if self._owner.established(self, who) else b""

    def _handshake_timed_out(self) -> None:
        if self._transport is not None and not self.failure:
            self.refusal = Refused(Reason.UNSPECIFIED, f"no handshake within {self._handshake_timeout_s:g} s")
            self.failure = self.refusal.text
            self._transport.abort()

    # --- frames --------------------------------------------------------------------------------------------------

    def _take(self, frames: list[tuple[int, bytes, bytes]]) -> None:
        for frame in frames:
            if frame[0] >= FRAME_TRANSPORT_FIRST:
                break
        else:
            self._pass_on(frames)
            return
        for type, head, _ in frames:
            if type >= FRAME_TRANSPORT_FIRST:
                self._take_own(type, head)
        self._pass_on([frame for frame in frames if frame[0] < FRAME_TRANSPORT_FIRST])

    def _pass_on(self, frames: list[tuple[int, bytes, bytes]]) -> None:
        if frames:
            if self.dialled:
                raise CorruptFrame(f"a frame of type {frames[0][0]} against the direction")
            self.received_frames += len(frames)
            self._owner.frames_received(self, frames)

    def _take_own(self, type: int, head: bytes) -> None:
        if self._transport is None:
            return
        if type == FRAME_PING and not head and not self.dialled:
            # Pings come one at a time, each after the answer to the last; a peer that floods us does not get a buffer.
            if self._transport.get_write_buffer_size() < CONTROL_BUFFER_BYTES_MAX:
                self._transport.write(_PONG)
        elif type == FRAME_PONG and not head and self._ping_end:
            self._ping_end = 0
            self.round_trips_s.append(time.monotonic() - self._pinged_at)
        elif type == FRAME_REMOVED and len(head) == 8 and self.dialled:
            self._owner.told_removed(self, int.from_bytes(head, "big"))
        elif type == FRAME_CLOSE:
            self.failure = f"closed by peer: {head.decode('utf-8', 'replace')[:_CLOSE_TEXT_BYTES_MAX]!r}"
            self._transport.abort()
        else:
            raise CorruptFrame(f"a frame of type {type} and {len(head)} bytes out of place")

    # --- liveness ------------------------------------------------------------------------------------------------

    def watch(self, now: float, *, was_asleep: bool) -> None:
        """Look after the connection, a few times within `silence_limit_s`: ping, or give it up.

        `was_asleep`: this process did not run for a while, so silence may have been ours; the count begins anew.
        """
        if self.who is None or self.failure or self._transport is None:
            return
        if was_asleep:
            self._alive_at = now
        if self.dialled:
            acknowledged = self.sent_bytes - self._transport.get_write_buffer_size() - self._unacknowledged()
            if acknowledged > self._acknowledged and acknowledged < self._ping_end:
                self._alive_at = now  # slow, but moving; our ping is still behind bulk
            self._acknowledged = acknowledged
            if not self._ping_end:
                # Not the loop's clock: uvloop's counts whole milliseconds, and stands still within a turn.
                self._pinged_at = time.monotonic()
                self._transport.write(_PING)
                self.sent_bytes += len(_PING)
                self._ping_end = self.sent_bytes
        silence_s = now - self._alive_at
        # The receiving side only tidies up, and leaves the decision to the sender for as long as it can.
        if silence_s >= self._silence_limit_s * (1 if self.dialled else 3):
            self.abort(f"no sign of life for {silence_s:.1f} s", tell=False)

    def _unacknowledged(self) -> int:
        if self._socket is None or not sys.platform.startswith("linux"):
            return 0
        try:
            return int(struct.unpack("i", fcntl.ioctl(self._socket.fileno(), _SIOCOUTQ, b"\0\0\0\0"))[0])
        except OSError:
            return 0

    # --- socket --------------------------------------------------------------------------------------------------

    def _set_socket_options(self) -> None:
        limit_s = max(1, round(self._silence_limit_s))
        self._set_option(socket.IPPROTO_TCP, "TCP_NODELAY", 1)
        self._set_option(socket.SOL_SOCKET, "SO_KEEPALIVE", 1)
        self._set_option(socket.IPPROTO_TCP, "TCP_KEEPIDLE", limit_s)
        self._set_option(socket.IPPROTO_TCP, "TCP_KEEPINTVL", 1)
        self._set_option(socket.IPPROTO_TCP, "TCP_KEEPCNT", limit_s)
        self._set_option(socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", round(self._silence_limit_s * 1000))

    def _prefer(self) -> None:
        """Let heartbeats pass bulk in this machine's queues too."""
        self._set_option(socket.SOL_SOCKET, "SO_PRIORITY", _NO_DELAY_PRIORITY)

    def _set_option(self, level: int, name: str, value: int) -> None:
        option = getattr(socket, name, None)
        if option is not None and self._socket is not None:
            with contextlib.suppress(OSError):  # e.g. a transport that is no TCP socket
                self._socket.setsockopt(level, option, value)

    def _facts(self) -> str:
        peer = self.who.peer if self.who is not None else NodeId("?")
        channel = self.who.channel.name.lower() if self.who is not None else "?"
        return f"peer={peer} channel={channel} direction={self.direction} address={self.address}"
