"""How long nobody gets a 250 when the leader is killed, or hands over: the demo's customers, again and again."""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import uvloop

from smtpraft.cli.bench.cluster import ELECTION_MAX_MS, Cluster
from smtpraft.cli.bench.plan import Plan
from smtpraft.cli.bench.target import BenchFailed
from smtpraft.cli.client import Client
from smtpraft.cli.demo.book import Book, Kill
from smtpraft.cli.demo.nodes import DemoNode
from smtpraft.cli.demo.sender import Sender, Supply

CLIENTS_PER_NODE: Final = 10
PACE_S: Final = 0.05  # between messages of a client: about 500 messages/s, which leaves the machine air
CALM_S: Final = 1.2  # between the restart of a node and the next kill
HAND_OVER_CALM_S: Final = 0.4
HAND_OVER_WATCH_S: Final = 0.3
NEXT_REPLY_S: Final = 15.0
MESSAGE_BYTES: Final = 4096
KILLS: Final = 20
HAND_OVERS: Final = 30


def measure(plan: Plan) -> None:
    """Kill the leader and restart it, again and again; then have it hand over, again and again.

    Raises:
        BenchFailed: mail did not go on.
    """
    with plan.place("failover") as place:
        cluster = Cluster(place / "nodes", 1)
        try:
            cluster.begin()
            gc.disable()  # what is written down of 30,000 messages takes 0.17 s to go through: a pause of every session
            for part, work in (("kills", _kill_leaders), ("hand-overs", _hand_over)):
                customers = _Customers(cluster, plan)
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    runner.run(customers.run(work))
                for error in customers.errors_on_survivors[:5]:
                    plan.figures.warnings.append(f"{part}: a session on a surviving node saw {error}")
                plan.figures.add(f"failover.errors_on_survivors.{part}", len(customers.errors_on_survivors))
            plan.figures.add("failover.election_max_ms", ELECTION_MAX_MS)
            cluster.end()
        finally:
            gc.enable()
            cluster.kill()


class _Steady(Supply):
    """It never runs dry, and gives each client a message every `PACE_S`."""

    def __init__(self) -> None:
        super().__init__(_messages(), 0)
        self.wants_more = True

    @property
    def pace_s(self) -> float:
        return PACE_S


@dataclass
class _Customers:
    cluster: Cluster
    plan: Plan
    book: Book = field(default_factory=Book)
    down: DemoNode | None = None
    errors_on_survivors: list[str] = field(default_factory=list)

    async def run(self, work: Callable[[_Customers], Awaitable[None]]) -> None:
        supply = _Steady()
        try:
            async with asyncio.TaskGroup() as tasks:
                for number, node in enumerate(CLIENTS_PER_NODE * self.cluster.nodes):
                    sender = Sender(number, [node.smtp_port], supply, self.book, self._hears(node))
                    tasks.create_task(sender.run(), name=f"client of {node.id}")
                await work(self)
                supply.wants_more = False
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    def _hears(self, node: DemoNode) -> Callable[[Exception], None]:
        def trouble(error: Exception) -> None:
            if node is not self.down:
                self.errors_on_survivors.append(f"{type(error).__name__}: {error}")

        return trouble


async def _kill_leaders(customers: _Customers) -> None:
    """The time is from the kill to the first 250 for a message whose final dot was sent after it."""
    plan, cluster = customers.plan, customers.cluster
    kills = plan.count(KILLS, 2)
    for number in range(1, kills + 1):
        await asyncio.sleep(CALM_S)
        node = customers.down = await cluster.leader()
        kill = Kill(node.id, time.monotonic())
        assert node.process is not None
        node.process.kill()
        customers.book.kills.append(kill)
        deadline = time.monotonic() + NEXT_REPLY_S
        while kill.seconds is None:
            if time.monotonic() > deadline:
                raise BenchFailed(f"no 250 within {NEXT_REPLY_S:.0f} s after the kill of {node.id}")
            await asyncio.sleep(0.005)
        plan.figures.add("failover.wait_ms", kill.seconds * 1000)
        plan.say(f"kill {number}/{kills}: {node.id}, next 250 after {kill.seconds * 1000:.0f} ms")
        node.kill()
        await cluster.restart(node)
        customers.down = None


async def _hand_over(customers: _Customers) -> None:
    """The pause is the longest that any session waited for any reply meanwhile."""
    plan, cluster = customers.plan, customers.cluster
    count = plan.count(HAND_OVERS, 3)
    for number in range(1, count + 1):
        await asyncio.sleep(HAND_OVER_CALM_S)
        node = await cluster.leader()
        customers.book.longest_pause_s = 0.0
        answer = await asyncio.to_thread(
            Client([f"127.0.0.1:{node.admin_port}"], 10.0).request, "POST", "/v1/leader/transfer", {}
        )
        if answer.status != 200:
            raise BenchFailed(f"hand-over: {answer.error()}")
        await asyncio.sleep(HAND_OVER_WATCH_S)
        pause_ms = customers.book.longest_pause_s * 1000
        plan.figures.add("handover.pause_ms", pause_ms)
        plan.say(f"hand-over {number}/{count}: pause {pause_ms:.1f} ms")


def _messages() -> Iterator[bytes]:
    body = (b"X" * 78 + b"\r\n") * (MESSAGE_BYTES // 80)
    for number in itertools.count(1):
        yield b"Subject: %d\r\n\r\n" % number + body
