"""How long nobody gets a 250 when the leader is killed: the demo's customers, steady mail, one kill after the other."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import uvloop

from smtpraft.cli.demo.book import Book, Kill
from smtpraft.cli.demo.nodes import DemoNode
from smtpraft.cli.demo.sender import Sender, Supply

from .load import MESSAGE_BYTES
from .nodes import Cluster
from .target import BenchFailed

CLIENTS_PER_NODE: Final = 10
PACE_S: Final = 0.05  # between messages of a client: about 500 messages/s, which leaves the machine air
CALM_S: Final = 1.5  # between the restart of a node and the next kill
NEXT_REPLY_S: Final = 15.0


@dataclass
class Failovers:
    """What the clients saw."""

    waits_s: list[float] = field(default_factory=list)
    """From a kill to the first 250 for a message whose final dot was sent after it."""
    errors_on_survivors: list[str] = field(default_factory=list)
    acknowledged: int = 0
    longest_pause_s: float = 0.0
    """Of any session; those of the killed node go on when it is back."""


def measure(cluster: Cluster, kills: int, say: Callable[[str], None]) -> Failovers:
    """Kill the leader and restart it, again and again.

    Raises:
        BenchFailed: mail did not go on.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_Failover(cluster, say).run(kills))


class _Steady(Supply):
    """It never runs dry, and gives each client a message every `PACE_S`."""

    def __init__(self) -> None:
        super().__init__(_messages(), 0)
        self.wants_more = True

    @property
    def pace_s(self) -> float:
        return PACE_S


class _Failover:
    def __init__(self, cluster: Cluster, say: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._say = say
        self._book = Book()
        self._supply = _Steady()
        self._down: DemoNode | None = None
        self._found = Failovers()

    async def run(self, kills: int) -> Failovers:
        try:
            async with asyncio.TaskGroup() as tasks:
                for number, node in enumerate(CLIENTS_PER_NODE * self._cluster.nodes):
                    sender = Sender(number, [node.smtp_port], self._supply, self._book, self._hears(node))
                    tasks.create_task(sender.run(), name=f"client of {node.id}")
                await self._kill_leaders(kills)
                self._supply.wants_more = False
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        self._found.acknowledged = self._book.acknowledged
        self._found.longest_pause_s = self._book.longest_pause_s
        return self._found

    def _hears(self, node: DemoNode) -> Callable[[Exception], None]:
        def trouble(error: Exception) -> None:
            if node is not self._down:
                self._found.errors_on_survivors.append(f"{node.id}: {type(error).__name__}: {error}")

        return trouble

    async def _kill_leaders(self, kills: int) -> None:
        for number in range(1, kills + 1):
            await asyncio.sleep(CALM_S)
            node = self._down = await self._cluster.leader()
            kill = Kill(node.id, time.monotonic())
            assert node.process is not None
            node.process.kill()
            self._book.kills.append(kill)
            deadline = time.monotonic() + NEXT_REPLY_S
            while kill.seconds is None:
                if time.monotonic() > deadline:
                    raise BenchFailed(f"no 250 within {NEXT_REPLY_S:.0f} s after the kill of {node.id}")
                await asyncio.sleep(0.005)
            self._found.waits_s.append(kill.seconds)
            self._say(f"kill {number}/{kills}: {node.id}, next 250 after {kill.seconds * 1000:.0f} ms")
            node.kill()
            await self._cluster.restart(node)
            self._down = None


def _messages() -> Iterator[bytes]:
    body = (b"X" * 78 + b"\r\n") * (MESSAGE_BYTES // 80)
    for number in itertools.count(1):
        yield b"Subject: %d\r\n\r\n" % number + body
