"""Faults of all kinds in random order, while mail flows and the log is cut short all the time.

A failure prints its seed; `SMTPRAFT_SEED=n` runs that one again. Processes are not deterministic, so the same seed is
the same faults and not the same history.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from smtpraft.cli.demo.nodes import DemoNode

from .cluster import Stage
from .figures import Figures
from .journal import Outage

pytestmark = [pytest.mark.fault, pytest.mark.timeout(600)]

FAULTS: Final = (
    "kill leader",
    "kill follower",
    "kill two",
    "kill all",
    "kill while starting",
    "kill what is paused",
    "pause leader",
    "pause follower",
    "pause all",
    "terminate leader",
    "terminate follower",
    "sink away",
)
ROUNDS: Final = 6
ROUNDS_SLOW: Final = 40
PAUSE_S_MAX: Final = 4.0  # twice a lease
BUSY_MESSAGES: Final = 40

# Segments of 4 MiB and a log of a few hundred entries: rolls, recycling and compaction at every turn.
SHORT_LOG: Final = {
    "CLUSTER__SEGMENT_BYTES": str(1 << 22),
    "CLUSTER__MAX_LOG_ENTRIES": "200",
    "CLUSTER__SNAPSHOT_THRESHOLD": "100",
    "CLUSTER__LOG_CACHE_BYTES": str(1 << 20),
}


class Nemesis:
    """Does harm, and undoes it."""

    def __init__(self, stage: Stage, source: random.Random) -> None:
        self._stage = stage
        self._cluster = stage.cluster
        self._source = source
        self.done: Counter[str] = Counter()

    async def strike(self) -> None:
        """One fault, from its beginning to the end of its consequences."""
        fault = self._source.choice(FAULTS)
        self.done[fault] += 1
        print(f"{time.monotonic():.3f} {fault}")
        leader = await self._cluster.leader()
        followers = self._cluster.others(leader)
        self._source.shuffle(followers)
        nodes = [leader, *followers]
        match fault:
            case "kill leader":
                await self._kill(leader)
            case "kill follower":
                await self._kill(followers[0])
            case "kill two":
                await self._kill(*self._source.sample(nodes, 2))
            case "kill all":
                await self._kill(*nodes)
            case "kill while starting":
                await self._kill_while_starting(self._source.choice(nodes))
            case "kill what is paused":
                await self._kill_what_is_paused(self._source.choice(nodes))
            case "pause leader":
                await self._pause(leader)
            case "pause follower":
                await self._pause(followers[0])
            case "pause all":
                await self._pause(*nodes)
            case "terminate leader":
                await self._terminate(leader)
            case "terminate follower":
                await self._terminate(followers[0])
            case "sink away":
                await self._stage.witness.close()
                await asyncio.sleep(self._source.uniform(0, 3))
                await self._stage.witness.open()

    def _begin(self, nodes: tuple[DemoNode, ...], outages: list[Outage]) -> list[Outage]:
        """Without a majority the others lose the cluster too: what they sent and could not record may be repeated."""
        if len(nodes) * 2 > len(self._cluster.nodes):
            outages += [self._stage.journal.outage(node.id) for node in self._cluster.others(*nodes)]
        return outages

    async def _end(self, outages: list[Outage]) -> None:
        for node in self._cluster.nodes:
            await self._cluster.wait_ready(node)
        for outage in outages:
            outage.until = time.monotonic()

    async def _kill(self, *nodes: DemoNode) -> None:
        outages = self._begin(nodes, self._stage.kill(*nodes))
        await asyncio.sleep(self._source.choice((0, 0.3, 3)))
        for node in nodes:
            self._cluster.launch(node)
        await self._end(outages)

    async def _kill_while_starting(self, node: DemoNode) -> None:
        outages = self._stage.kill(node)
        for _ in range(3):
            self._cluster.launch(node)
            await asyncio.sleep(self._source.uniform(0.1, 1.0))
            outages += self._stage.kill(node)
        self._cluster.launch(node)
        await self._end(outages)

    async def _kill_what_is_paused(self, node: DemoNode) -> None:
        outages = [self._stage.pause(node)]
        await asyncio.sleep(self._source.uniform(0, PAUSE_S_MAX))
        outages += self._stage.kill(node)
        self._cluster.launch(node)
        await self._end(outages)

    async def _pause(self, *nodes: DemoNode) -> None:
        outages = self._begin(nodes, [self._stage.pause(node) for node in nodes])
        await asyncio.sleep(self._source.uniform(0.1, PAUSE_S_MAX))
        for node in nodes:
            self._stage.resume(node)
        await self._end(outages)

    async def _terminate(self, node: DemoNode) -> None:
        outages = self._stage.terminate(node)
        assert node.process is not None
        code = await asyncio.to_thread(node.process.wait, 20)
        assert code == 0, f"{node.id} ended with {code}"
        self._cluster.launch(node)
        await self._end(outages)


async def many_faults(directory: Path, seed: int, rounds: int) -> tuple[Stage, Nemesis]:
    """Let the nemesis strike `rounds` times; check everything at the end."""
    source = random.Random(seed)
    print(f"seed {seed}")
    async with Stage(directory, settings=SHORT_LOG) as stage:
        nemesis = Nemesis(stage, source)
        async with stage.load() as load:
            for _ in range(rounds):
                await load.wait_acknowledged(BUSY_MESSAGES)
                await asyncio.sleep(source.uniform(0, 0.3))
                await nemesis.strike()
            await load.wait_acknowledged(BUSY_MESSAGES)
            await load.finish()
        await stage.settle()
        stage.check_mail()
        for node in stage.cluster.nodes:
            first = (await stage.cluster.statuses([node]))[0][1]
            assert first is not None
            assert first["first_index"] != 1, f"{node.id} never cut its log"
        return stage, nemesis


def seeds(*fixed: int) -> list[int]:
    wanted = os.environ.get("SMTPRAFT_SEED")
    return [int(wanted)] if wanted else list(fixed)


@pytest.mark.parametrize("seed", seeds(1))
async def test_a_few_faults_in_random_order(directory: Path, seed: int) -> None:
    await many_faults(directory, seed, ROUNDS)


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(11, 12, 13))
async def test_many_faults_in_random_order(directory: Path, figures: Figures, seed: int) -> None:
    stage, nemesis = await many_faults(directory, seed, ROUNDS_SLOW)
    figures.add(f"seed {seed}: acknowledged", [stage.journal.acknowledged], "messages")
    figures.add(f"seed {seed}: repeats", [len(stage.journal.repeats())], "messages")
    figures.add(f"seed {seed}: kinds of faults", [len(nemesis.done)], "kinds")
