"""SIGTERM under load: nobody waits for long, nothing is lost, and the exit status says that all is well."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

import pytest

from smtpraft.cli.demo.book import Outcome
from smtpraft.cli.demo.nodes import DemoNode

from .cluster import Stage, wait_for
from .figures import Figures
from .witness import DOT

pytestmark = [pytest.mark.fault, pytest.mark.timeout(180)]

EXIT_S_MAX: Final = 20.0  # a service manager kills at some point; SIGTERM has drained by then


async def wait_exit(node: DemoNode) -> float:
    """Return the seconds until `node` has ended; it must end well, and in time."""
    assert node.process is not None
    started = time.monotonic()
    code = await asyncio.to_thread(node.process.wait, EXIT_S_MAX)
    assert code == 0, f"{node.id} ended with {code}"
    return time.monotonic() - started


def elections(node: DemoNode) -> int:
    """Return how often this node has missed its leader and asked for votes."""
    return (node.directory / "log").read_text().count("role=pre-candidate")


@pytest.mark.parametrize("victim_leads", [True, False], ids=["leader", "follower"])
async def test_a_node_that_is_told_to_stop_hands_everything_over(
    directory: Path, figures: Figures, victim_leads: bool
) -> None:
    """Promise 2, planned: no session with the others breaks, no election is needed, messages under way are answered."""
    async with Stage(directory) as stage:
        journal = stage.journal
        async with stage.load() as load:
            for _ in range(3):
                await load.wait_acknowledged(60)
                leader = await stage.cluster.leader()
                victim = leader if victim_leads else stage.cluster.others(leader)[0]
                others = stage.cluster.others(victim)
                before = sum(elections(node) for node in others)
                (outage,) = stage.terminate(victim)
                figures.add("SIGTERM of one: ended after", [await wait_exit(victim)], "s")
                figures.add(
                    "SIGTERM of one: longest wait on another", [max(journal.pauses(outage), default=0) * 1000], "ms"
                )
                assert sum(elections(node) for node in others) == before, "leadership was not handed over"
                await load.wait_acknowledged(30)
                await stage.restart(outage)
            await load.finish()
        await stage.settle()
        stage.check_mail()
        journal.check_sessions()
        assert not journal.repeats()
        unanswered = [attempt for attempt in journal.of(Outcome.UNKNOWN) if not attempt.copies]
        assert not journal.of(Outcome.UNKNOWN), f"handed over and not answered: {len(unanswered)} of them not delivered"


async def test_all_nodes_told_to_stop_at_once_end_well_and_lose_nothing(directory: Path, figures: Figures) -> None:
    async with Stage(directory) as stage:
        async with stage.load() as load:
            for _ in range(2):
                await load.wait_acknowledged(100)
                outages = stage.terminate(*stage.cluster.nodes)
                times = await asyncio.gather(*(wait_exit(node) for node in stage.cluster.nodes))
                figures.add("SIGTERM of all: ended after", times, "s")
                for outage in outages:
                    stage.cluster.launch(stage.node(outage.node))
                for outage in outages:
                    await stage.cluster.wait_ready(stage.node(outage.node))
                    outage.until = time.monotonic()
            await load.wait_acknowledged(100)
            await load.finish()
        await stage.settle()
        stage.check_mail()
        stage.journal.check_sessions()


async def test_a_destination_that_does_not_answer_does_not_hold_up_the_end(directory: Path, figures: Figures) -> None:
    """Deliveries wait for the reply to their final dot when the node is told to stop."""
    async with Stage(directory) as stage:
        leader = await stage.cluster.leader()
        stage.witness.holds = lambda node, stage: stage == DOT
        async with stage.load([leader]) as load:
            await load.wait_acknowledged(30)
            await load.finish()
        await wait_for(lambda: len(stage.witness.waiting(DOT)) > 0, "a final dot is under way")
        under_way = stage.witness.dots[leader.id]
        (outage,) = stage.terminate(leader)
        figures.add("SIGTERM with a mute sink: ended after", [await wait_exit(leader)], "s")
        stage.witness.release()
        await stage.wait_delivered()
        await stage.restart(outage)
        await stage.settle()
        stage.journal.check_mail()
        assert len(stage.journal.repeats()) <= under_way
