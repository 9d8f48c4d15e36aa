"""One end of the line between a node and an SMTP worker: frames in, frames out, one write for each turn of the loop."""

from __future__ import annotations

import asyncio
import logging
from typing import Final, cast

from smtpraft.cluster import direct
from smtpraft.smtp.worker_frames import FrameReader

log = logging.getLogger(__name__)

_JOIN_BYTES: Final = 64 * 1024  # below this a copy costs less than a vector of pieces


class WorkerLine(asyncio.BufferedProtocol):
    """What both ends do alike; a subclass takes frames and hears when the line is gone."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._fd = -1
        self._reader = FrameReader()
        self._outgoing: list[bytes] = []
        self._flushes = False
        self._reading_paused = False
        self._writing_paused = False
        self.lost = False

    def take_frame(self, kind: int, body: memoryview) -> None:
        """Act on a frame. `body` is valid until this returns. What it raises ends the line."""
        raise NotImplementedError

    def line_lost(self) -> None:
        """The other end is gone, for good. Called once."""
        raise NotImplementedError

    def more_to_send(self) -> bytes:
        """Return pieces of a frame that can wait for others; called while there is room, until it returns nothing."""
        return b""

    def send(self, *pieces: bytes) -> None:
        """Send a frame, or the pieces of one, with all others of this turn of the loop."""
        self._outgoing += pieces
        if not self._flushes:
            self._flushes = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what is to be sent."""
        self._flushes = False
        transport = self._transport
        if transport is None or self.lost:
            self._outgoing.clear()
            return
        outgoing, self._outgoing = self._outgoing, []
        if outgoing:
            size_bytes = sum(map(len, outgoing))
            if size_bytes <= _JOIN_BYTES:
                direct.write(transport, self._fd, b"".join(outgoing))
            else:
                direct.write_parts(transport, self._fd, outgoing, size_bytes)
        if not self._writing_paused and (more := self.more_to_send()):
            transport.write(more)
            self.send()  # the next piece in the next turn: short messages pass in between

    def end(self) -> None:
        """Send what is left, then hang up."""
        self.flush()
        if self._transport is not None:
            self._transport.close()

    def cut(self) -> None:
        """Hang up at once."""
        if self._transport is not None:
            self._transport.abort()

    def read(self, wanted: bool) -> None:
        """Read from the other end, or let it wait."""
        transport = self._transport
        if transport is None or self.lost or wanted is not self._reading_paused or transport.is_closing():
            return
        self._reading_paused = not wanted
        if wanted:
            transport.resume_reading()
        else:
            transport.pause_reading()

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._fd = direct.descriptor(transport)
        self._transport.set_write_buffer_limits(high=1024 * 1024)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.room()

    def buffer_updated(self, nbytes: int) -> None:
        if self.lost:
            return
        try:
            for kind, body in self._reader.frames(nbytes):
                self.take_frame(kind, body)
        except Exception:
            log.exception("the line between node and worker is broken; please report it")
            self.cut()

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        self.send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.lost:
            self.lost = True
            self._outgoing.clear()
            self.line_lost()
