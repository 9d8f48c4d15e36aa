"""Steady mail: clients that stay with one node each and go on until they are told to finish."""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import Iterator, Sequence
from typing import Final, Self

from smtpraft.cli.demo.messages import demo_messages
from smtpraft.cli.demo.nodes import DemoNode
from smtpraft.cli.demo.sender import Sender, Supply

from .journal import Journal

CLIENTS_PER_NODE: Final = 5
PACE_S: Final = 0.05  # between messages of a client: enough that some are always under way, and the machine has air
LARGE_EVERY: Final = 120
LARGE_BYTES: Final = 2_500_000  # several entries (docs/design.md, "One message's way")
FINISH_S: Final = 60.0


def mixed_messages(seed: int) -> Iterator[bytes]:
    """Yield messages without end, of 1 KB to 1 MB, and now and then one that needs several entries of the log."""
    source = random.Random(seed)
    for number, message in enumerate(demo_messages(seed), start=1):
        yield message
        if number % LARGE_EVERY == 0:
            body = base64.encodebytes(source.randbytes(LARGE_BYTES * 3 // 4)).replace(b"\n", b"\r\n")
            yield b"Subject: large\r\n\r\n" + body


class _Steady(Supply):
    """A supply that never runs dry, at one message per client and `PACE_S`."""

    def __init__(self, messages: Iterator[bytes], pace_s: float) -> None:
        super().__init__(messages, 0)
        self._pace_s = pace_s
        self.wants_more = True

    @property
    def pace_s(self) -> float:
        return self._pace_s


class Load:
    """`async with Load(nodes, journal) as load: …; await load.finish()`."""

    def __init__(
        self,
        nodes: Sequence[DemoNode],
        journal: Journal,
        *,
        clients_per_node: int = CLIENTS_PER_NODE,
        pace_s: float = PACE_S,
        messages: Iterator[bytes] | None = None,
    ) -> None:
        self._nodes = nodes
        self._journal = journal
        self._clients_per_node = clients_per_node
        self._supply = _Steady(messages if messages is not None else mixed_messages(1), pace_s)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        for node in self._nodes:
            for _ in range(self._clients_per_node):
                self._tasks.append(asyncio.create_task(self._client(node).run(), name=f"client of {node.id}"))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _client(self, node: DemoNode) -> Sender:
        journal = self._journal
        return Sender(
            journal.new_sender(node.id),
            [node.smtp_port],
            self._supply,
            journal,
            lambda error: journal.trouble(node.id, error),
        )

    async def wait_acknowledged(self, more: int, timeout_s: float = 30.0) -> None:
        """Return when `more` messages have been acknowledged."""
        enough = self._journal.acknowledged + more
        async with asyncio.timeout(timeout_s):
            while self._journal.acknowledged < enough:
                self._check()
                await asyncio.sleep(0.005)

    async def finish(self) -> None:
        """Begin no new message; return when those under way have their answers."""
        self._supply.wants_more = False
        async with asyncio.timeout(FINISH_S):
            await asyncio.gather(*self._tasks)

    def _check(self) -> None:
        """A client that died is a bug of the test: say so, and do not wait."""
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error
