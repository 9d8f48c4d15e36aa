"""The sink of the cluster tests: it knows which node delivers, can be away, and can leave a node waiting."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from smtpraft.cli.demo.sink import SinkSession

DATA: Final = "data"
"""The 354 to DATA."""
DOT: Final = "dot"
"""The 250 to the final dot."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A session ended in the middle of a message: no final dot came."""

    node: str
    at: float


class Witness:
    """An SMTP server on one loopback port. `open`, then `close`, as often as the mail shall have somewhere to go."""

    def __init__(self, port: int, arrived: Callable[[str, list[str], bytes], None]) -> None:
        """`arrived(node, recipients, content)` is called for each message before its 250 leaves."""
        self.port = port
        self.arrived = arrived
        self.holds: Callable[[str, str], bool] = lambda node, stage: False
        """Asked with a node and `DATA` or `DOT`: shall it wait for that reply until `release`?"""
        self.refuses: Callable[[str], bool] = lambda recipient: False
        """Asked with each recipient: is there nobody of that name?"""
        self.dots: Counter[str] = Counter()
        """Final dots, by node."""
        self.unfinished: list[Unfinished] = []
        self.sessions: set[_Session] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen."""
        assert self._server is None
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Session(self), "127.0.0.1", self.port)

    async def close(self) -> None:
        """Be gone: connections are refused, those that are open are cut."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for session in list(self.sessions):
            session.cut()

    def waiting(self, stage: str) -> list[str]:
        """Return the nodes that wait for a held reply, one for each such session."""
        return [session.node for session in self.sessions if session.held_stage == stage]

    def release(self) -> None:
        """Hold nothing any more; send what was held."""
        self.holds = lambda node, stage: False
        for session in list(self.sessions):
            session.release()


class _Session(SinkSession):
    def __init__(self, witness: Witness) -> None:
        super().__init__(self._took)
        self._witness = witness
        self._held = b""
        self._awaiting_dot = False
        self.held_stage = ""

    @property
    def node(self) -> str:
        """Which node this is: its id begins the name that it says."""
        return self.helo.partition(".")[0]

    def cut(self) -> None:
        """Drop the connection."""
        self._transport.abort()

    def release(self) -> None:
        """Send the reply that was held."""
        held, self._held, self.held_stage = self._held, b"", ""
        if held:
            self._transport.write(held)
            self.data_received(b"")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._witness.sessions.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._witness.sessions.discard(self)
        if self._awaiting_dot:
            self._witness.unfinished.append(Unfinished(self.node, time.monotonic()))

    def _took(self, recipients: list[str], content: bytes) -> None:
        self._awaiting_dot = False
        self._witness.dots[self.node] += 1
        self._witness.arrived(self.node, recipients, content)

    def _take_command(self, replies: list[bytes]) -> bool:
        if self._held:
            return False
        more = super()._take_command(replies)
        if replies and self._recipients and self._witness.refuses(self._recipients[-1]):
            self._recipients.pop()
            replies[-1] = b"550 5.1.1 No such user\r\n"
        if self._in_data:
            self._awaiting_dot = True
            return self._hold(DATA, replies)
        return more

    def _take_content(self, replies: list[bytes]) -> bool:
        if self._held:
            return False
        return super()._take_content(replies) and self._hold(DOT, replies)

    def _hold(self, stage: str, replies: list[bytes]) -> bool:
        """Keep the last reply back if the witness says so; return whether to go on."""
        if not self._witness.holds(self.node, stage):
            return True
        self._held = replies.pop()
        self.held_stage = stage
        return False
