"""Writing to a socket at once, and not when the event loop gets round to it.

uvloop collects what is written and writes at the end of a turn: after everything else that the turn does. Each message
waits for three such writes in a row (leader to follower, follower to leader, leader to client), and for what else the
three turns have to do. What the kernel does not take is left to the transport, which keeps the order.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Final

_PARTS_MAX: Final = 512  # of one call, half of what Linux takes (IOV_MAX); beyond, the transport gets them


def descriptor(transport: asyncio.BaseTransport) -> int:
    """Return the descriptor to write to; -1: only the transport may write (TLS, or no socket at all)."""
    if transport.get_extra_info("ssl_object") is not None or transport.get_extra_info("sslcontext") is not None:
        return -1
    try:
        return int(transport.get_extra_info("socket").fileno())
    except (AttributeError, OSError, TypeError):
        return -1


def write(transport: asyncio.Transport, fd: int, data: bytes) -> None:
    """Write `data` to `fd`, the descriptor of `transport`; -1: leave it to the transport. Nothing if that closes."""
    if transport.is_closing():
        return  # it has given the descriptor back: by now it may be another connection's
    if fd >= 0 and not transport.get_write_buffer_size():
        try:
            count = os.write(fd, data)
        except OSError:
            count = 0  # full, or broken: the transport finds that out, and tells its protocol
        if count == len(data):
            return
        data = data[count:]
    transport.write(data)


def write_now(transport: asyncio.Transport, fd: int, data: bytes) -> int:
    """Write to `fd` what the kernel takes of `data` at once; return how many bytes that is, and leave it at that.

    0 if it takes nothing, if the connection is broken, or if only the transport may write.
    """
    if fd < 0 or transport.is_closing() or transport.get_write_buffer_size():
        return 0
    try:
        return os.write(fd, data)
    except OSError:
        return 0


def write_parts(transport: asyncio.Transport, fd: int, parts: Sequence[bytes | memoryview], size: int) -> None:
    """As `write`, the `parts` one after the other, `size` bytes in all."""
    if transport.is_closing():
        return
    if fd >= 0 and len(parts) <= _PARTS_MAX and not transport.get_write_buffer_size():
        try:
            count = os.writev(fd, parts)
        except OSError:
            count = 0
        if count == size:
            return
        if count:
            transport.write(b"".join(parts)[count:])
            return
    transport.writelines(parts)
