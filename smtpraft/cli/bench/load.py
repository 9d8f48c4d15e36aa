"""Loads a system and says what it saw: mail over SMTP, writes of a replicated log, writes of etcd.

The generator itself is `_fastload` (compiled) or its plain twin `_pureload`. Loopback only.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from smtpraft.cli.bench.loadplan import FRAMED, GRPC, KEY_DIGITS, SMTP, LoadFailed

if TYPE_CHECKING or os.environ.get("SMTPRAFT_PURE", "0") not in ("", "0"):
    from smtpraft.cli.bench._pureload import run_load

    COMPILED: bool = False
else:
    try:
        from smtpraft.cli.bench._fastload import run_load

        COMPILED = True
    except ModuleNotFoundError as error:
        if error.name != "smtpraft.cli.bench._fastload":
            raise
        from smtpraft.cli.bench._pureload import run_load

        COMPILED = False

__all__ = ["COMPILED", "Load", "LoadFailed", "send_mail", "write_etcd", "write_log"]

SENDER: Final = "bench@sender.example"
WARM_UP_SHARE: Final = 0.15
STUCK_S: Final = 30.0
TIMED_MESSAGES_MAX: Final = 2_000_000  # of a run that ends by time
_LINE: Final = b"X" * 78 + b"\r\n"
_PERCENTILES: Final = (*range(0, 100, 2), 99.0, 99.5, 99.9, 100.0)


@dataclass(frozen=True, slots=True)
class Load:
    """What came of it. Where a run ends by time, the first replies and those after its end count for nothing."""

    count: int
    """Of all messages answered."""
    seconds: float
    rate: float
    waits_ms: Sequence[float]
    """Ascending."""
    cpu_us: float
    """What the generator itself took of a message."""

    def percentile(self, percent: float) -> float:
        """Return the milliseconds that `percent` of 100 waits do not exceed."""
        return self.waits_ms[max(0, math.ceil(len(self.waits_ms) * percent / 100) - 1)]

    @property
    def p50_ms(self) -> float:
        return self.percentile(50)

    @property
    def p99_ms(self) -> float:
        return self.percentile(99)

    def distribution(self) -> list[tuple[float, float]]:
        """Return (percent, milliseconds), enough of them for a picture."""
        return [(percent, round(self.percentile(percent), 4)) for percent in _PERCENTILES]


def send_mail(
    ports: Sequence[int],
    recipient: str,
    sessions: int,
    size_bytes: int,
    *,
    seconds: float = 0.0,
    messages: int = 0,
    anew: bool = False,
) -> Load:
    """Send messages of `size_bytes` for `seconds`, or so many `messages`; `anew`: each over a session of its own.

    Raises:
        LoadFailed: a refusal, or a session broke.
    """
    head = b"From: <%s>\r\nTo: <%s>\r\nSubject: bench\r\n\r\n" % (SENDER.encode(), recipient.encode())
    body = _LINE * (max(0, size_bytes - len(head)) // len(_LINE) + 1)
    content = head + body[: max(0, size_bytes - len(head) - 2)].rstrip(b"\r\n") + b"\r\n"
    commands = [
        b"EHLO client.example\r\n",
        b"MAIL FROM:<%s>\r\n" % SENDER.encode(),
        b"RCPT TO:<%s>\r\n" % recipient.encode(),
        b"DATA\r\n",
        content + b".\r\n",
        b"QUIT\r\n",
    ]
    return _run(SMTP, ports, commands, sessions, seconds, messages, anew=anew)


def write_log(
    ports: Sequence[int], sessions: int, value_bytes: int, *, seconds: float = 0.0, messages: int = 0
) -> Load:
    """Write values of `value_bytes` under keys of 16 to the nodes of `lognode`.

    Raises:
        LoadFailed: a write was not stored, or a connection broke.
    """
    message = struct.pack(">I", KEY_DIGITS + value_bytes) + bytes(KEY_DIGITS) + b"v" * value_bytes
    return _run(FRAMED, ports, [b"", message], sessions, seconds, messages, key_at=4)


def write_etcd(
    ports: Sequence[int], sessions: int, value_bytes: int, *, seconds: float = 0.0, messages: int = 0
) -> Load:
    """Put values of `value_bytes` under keys of 16 into etcd: `etcdserverpb.KV/Put` of its gRPC interface.

    Raises:
        LoadFailed: a write was not stored, or a connection broke.
    """
    opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _h2_frame(4, 0, b"", 0)
    opening += _h2_frame(8, 0, struct.pack(">I", 2**31 - 1 - 65535), 0)  # as much as there may ever be on its way
    # HPACK (RFC 7541): :method POST and :scheme http are in its table; the rest is written out, nothing is indexed.
    head = b"\x83\x86" + _literal(4, b"/etcdserverpb.KV/Put") + _literal(1, b"bench")
    head += b"\x0f\x10" + _string(b"application/grpc") + b"\x00" + _string(b"te") + _string(b"trailers")
    put = b"\x0a" + _varint(KEY_DIGITS) + bytes(KEY_DIGITS) + b"\x12" + _varint(value_bytes) + b"v" * value_bytes
    headers = _h2_frame(1, 4, head, 1)
    request = headers + _h2_frame(0, 1, struct.pack(">BI", 0, len(put)) + put, 1)
    key_at = len(headers) + 9 + 5 + 2
    commands = [opening, request]
    return _run(GRPC, ports, commands, sessions, seconds, messages, key_at=key_at, second_frame_at=len(headers))


def _run(
    protocol: int,
    ports: Sequence[int],
    commands: list[bytes],
    sessions: int,
    seconds: float,
    messages: int,
    *,
    anew: bool = False,
    key_at: int = 0,
    second_frame_at: int = 0,
) -> Load:
    timed = not messages
    ended_ns, wait_ns, cpu_s = run_load(
        protocol,
        list(ports),
        commands,
        sessions,
        messages or TIMED_MESSAGES_MAX,
        seconds if timed else 86_400.0,
        anew,
        key_at,
        second_frame_at,
        STUCK_S,
    )
    if not ended_ns:
        raise LoadFailed(f"no reply over {sessions} sessions")
    elapsed_s = max(ended_ns) / 1e9
    count_from, count_to = WARM_UP_SHARE * seconds * 1e9, seconds * 1e9
    counted = [wait for ended, wait in zip(ended_ns, wait_ns, strict=True) if count_from <= ended <= count_to]
    # Long messages may outlast a short run: then all of them count.
    short = not timed or len(counted) < 2 * sessions
    waits_ms = sorted(wait / 1e6 for wait in (wait_ns if short else counted))
    rate = len(waits_ms) / (elapsed_s if short else (1 - WARM_UP_SHARE) * seconds)
    return Load(len(ended_ns), elapsed_s, rate, waits_ms, cpu_s / len(ended_ns) * 1e6)


def _h2_frame(kind: int, flags: int, payload: bytes, stream: int) -> bytes:
    return struct.pack(">BHBBI", len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def _string(text: bytes) -> bytes:
    assert len(text) < 127
    return bytes([len(text)]) + text


def _literal(name: int, value: bytes) -> bytes:
    return bytes([name]) + _string(value)


def _varint(number: int) -> bytes:
    """A number as Protocol Buffers write it."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
