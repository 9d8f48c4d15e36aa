"""The key-value map is linearizable on real nodes, whatever happens to their leaders (promise 6)."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from smtpraft.cli.demo.nodes import DemoNode
from smtpraft.simulator.linearizability import KeyValueModel, check

from .cluster import Stage
from .figures import Figures
from .keyload import KeyLoad
from .links import Links

pytestmark = [pytest.mark.fault, pytest.mark.timeout(120)]

FAULTS: Final = ("cut", "kill", "pause", "cut", "cut")
ROUNDS_SLOW: Final = 40
PAUSE_S: Final = 1.0  # several elections long: the others have written when it wakes, or is heard again
PART: Final = 120  # operations before, during and after a fault


async def run(directory: Path, faults: Sequence[str], lease_reads: bool, seed: int) -> KeyLoad:
    """Kill, stop or cut off the leader under load; clients reach every node all the time."""
    source = random.Random(seed)
    settings = {"CLUSTER__LEASE_READS": str(lease_reads).lower()}
    async with Stage(directory, settings=settings, start=False) as stage:
        cluster = stage.cluster
        async with Links(cluster.nodes, cluster.spare_ports) as links:

            async def start(node: DemoNode) -> None:
                cluster.launch(node, **links.settings(node))

            for node in cluster.nodes:
                await start(node)
            for node in cluster.nodes:
                await cluster.wait_ready(node)
            async with KeyLoad(cluster.nodes, seed=seed) as load:
                for fault in faults:
                    load.epoch += 1
                    await load.wait_answered(PART)
                    leader = await cluster.leader()
                    await asyncio.sleep(source.uniform(0, 0.1))
                    if fault == "kill":
                        stage.kill(leader)
                        await load.wait_answered(PART)
                        await start(leader)
                    elif fault == "pause":
                        stage.pause(leader)
                        await asyncio.sleep(PAUSE_S)
                        stage.resume(leader)
                    else:
                        # It learns of its fate within two election timeouts; meanwhile others may lead, and write.
                        links.cut(leader)
                        await asyncio.sleep(PAUSE_S)
                        links.heal()
                    await cluster.wait_ready(leader)
                    await load.wait_answered(PART)
        return load


def judge(load: KeyLoad, figures: Figures, name: str) -> None:
    """Fail unless the history is linearizable, and shows what it should."""
    unknown = sum(operation.returned_at is None for operation in load.history)
    kinds = Counter(type(operation.call).__name__ for operation in load.history)
    figures.add(f"{name}: operations", [len(load.history)], "operations")
    figures.add(f"{name}: of unknown outcome", [unknown], "operations")
    started = time.monotonic()
    violation = check(KeyValueModel(), load.history)
    figures.add(f"{name}: judged in", [time.monotonic() - started], "s")
    assert violation is None, f"{violation}"
    assert len(load.answered_by) == 3, "reads were answered by the leader and by followers"
    assert set(kinds) == {"Get", "Put", "Delete"}
    assert unknown < len(load.history) / 10, "with so little known nothing is proven"


@pytest.mark.parametrize("lease_reads", [False, True], ids=["read-index", "lease-reads"])
async def test_what_clients_of_all_nodes_see_is_linearizable(
    directory: Path, figures: Figures, lease_reads: bool
) -> None:
    """S2, also for a leader that stood still while others led: tikv#10011, etcd#20418."""
    load = await run(directory, FAULTS, lease_reads, seed=3)
    name = f"kv {'lease reads' if lease_reads else 'ReadIndex'}"
    judge(load, figures, name)
    # The judge sees what it should: reads that ask nobody are stale now and then, and that is not linearizable.
    stale = [*load.history, *load.stale]
    assert check(KeyValueModel(), stale) is not None, f"{len(load.stale)} stale reads, none of them old"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("lease_reads", [False, True], ids=["read-index", "lease-reads"])
async def test_it_is_linearizable_through_many_faults(directory: Path, figures: Figures, lease_reads: bool) -> None:
    """The same, ten times as long."""
    load = await run(directory, (FAULTS * ROUNDS_SLOW)[:ROUNDS_SLOW], lease_reads, seed=4)
    judge(load, figures, f"kv slow {'lease reads' if lease_reads else 'ReadIndex'}")
