"""How long a client waits for its 250: sessions in one thread, each sends its next message when the last is answered.

Counted from the one write that holds content and final dot to the arrival of the whole reply. No PIPELINING, as
`smtp-source`. The client is Python on uvloop and shares the CPUs with what it measures, the same for every target.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast

import uvloop

from .load import MESSAGE_BYTES, SENDER
from .target import BenchFailed

WARM_UP_SHARE: Final = 0.15
STUCK_S: Final = 30.0
_LINE: Final = b"X" * 78 + b"\r\n"


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds from the final dot to the 250."""

    p50_ms: float
    p99_ms: float
    count: int


def measure(ports: Sequence[int], recipient: str, sessions: int, seconds: float) -> Latency:
    """Send for `seconds` over `sessions`, spread over `ports`; the first replies are not counted.

    Raises:
        BenchFailed: a reply was not what it should be, or a session broke.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        waits_s = sorted(runner.run(_measure(ports, recipient, sessions, seconds)))
    if len(waits_s) < sessions:
        raise BenchFailed(f"{len(waits_s)} replies over {sessions} sessions in {seconds} s")
    return Latency(percentile(waits_s, 50) * 1000, percentile(waits_s, 99) * 1000, len(waits_s))


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Return the value that `percent` of 100 values do not exceed. `ordered` is ascending and not empty."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


async def _measure(ports: Sequence[int], recipient: str, sessions: int, seconds: float) -> list[float]:
    loop = asyncio.get_running_loop()
    began = loop.time()
    clients = [_Client(recipient, began + seconds) for _ in range(sessions)]
    for place, client in enumerate(clients):
        await loop.create_connection(lambda client=client: client, "127.0.0.1", ports[place % len(ports)])  # type: ignore[misc]
    async with asyncio.timeout(seconds + STUCK_S):
        await asyncio.gather(*(client.ended for client in clients))
    count_from = time.perf_counter() - (loop.time() - began) + WARM_UP_SHARE * seconds
    return [wait_s for client in clients for answered_at, wait_s in client.waits if answered_at >= count_from]


class _Client(asyncio.Protocol):
    """One session."""

    def __init__(self, recipient: str, deadline: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._deadline = deadline
        self._buffer = b""
        content = b"From: <%s>\r\nTo: <%s>\r\nSubject: bench\r\n\r\n" % (SENDER.encode(), recipient.encode())
        content += _LINE * (MESSAGE_BYTES // len(_LINE)) + b"\r\n.\r\n"
        # What is sent when a reply of this class has come; the last one goes back to MAIL.
        self._steps = (
            (b"2", b"EHLO client.example\r\n"),
            (b"2", b"MAIL FROM:<%s>\r\n" % SENDER.encode()),
            (b"2", b"RCPT TO:<%s>\r\n" % recipient.encode()),
            (b"2", b"DATA\r\n"),
            (b"3", content),
        )
        self._step = 0
        self._sent_at = 0.0
        self.waits: list[tuple[float, float]] = []
        """When a message was answered, and after how many seconds."""
        self.ended: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(BenchFailed(f"the session broke: {exc}"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        last = self._buffer[self._buffer.rfind(b"\n", 0, -1) + 1 :]
        if not last.endswith(b"\r\n") or last[3:4] == b"-":
            return  # more of this reply is to come
        self._buffer = b""
        if self._step == len(self._steps):
            now = time.perf_counter()
            self.waits.append((now, now - self._sent_at))
            self._step = 1
        expected, answer = self._steps[self._step]
        if not last.startswith(expected):
            self._end(BenchFailed(f"refused: {last!r}"))
            return
        if self._step == 1 and self._loop.time() > self._deadline:
            self._end(None)
            return
        self._step += 1
        if self._step == len(self._steps):
            self._sent_at = time.perf_counter()
        self._transport.write(answer)

    def _end(self, error: BenchFailed | None) -> None:
        if not self.ended.done():
            if error is None:
                self.ended.set_result(None)
            else:
                self.ended.set_exception(error)
        self._transport.close()
