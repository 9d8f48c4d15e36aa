"""Many days, on one core or several, and what they add up to."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Final

from smtpraft.simulator.plan import Plan
from smtpraft.simulator.run import Day, live
from smtpraft.simulator.timeline import S

HOUR_S: Final = 3600


@dataclass(frozen=True, slots=True)
class Order:
    """Which day to live: what `Plan.draw` takes."""

    seed: int
    nodes: int | None = None
    seconds: int = 10
    only: frozenset[str] | None = None

    def replay(self) -> str:
        """Return the command that lives this day again."""
        parts = [f"smtpraft simulate --seed {self.seed} --seconds {self.seconds}"]
        if self.nodes is not None:
            parts.append(f"--nodes {self.nodes}")
        if self.only is not None:
            parts.append(f"--only {','.join(sorted(self.only)) or 'none'}")
        return " ".join(parts)


@dataclass(slots=True)
class Totals:
    """All days so far."""

    seeds: int = 0
    failed: int = 0
    simulated_s: float = 0.0
    cpu_s: float = 0.0
    events: int = 0
    checks: int = 0
    commits: int = 0
    writes: int = 0
    acknowledged: int = 0
    reads: int = 0
    elections: int = 0
    faults: Counter[str] = field(default_factory=Counter)

    def add(self, day: Day) -> None:
        """Count one more."""
        self.seeds += 1
        self.failed += day.failed
        self.simulated_s += day.simulated_us / S
        self.cpu_s += day.real_s
        self.events += day.events
        self.checks += day.checks
        self.commits += day.commits
        self.writes += day.writes
        self.acknowledged += day.acknowledged
        self.reads += day.reads
        self.elections += day.elections
        self.faults.update(day.faults)

    @property
    def speed(self) -> float:
        """Simulated seconds in a second of one core."""
        return self.simulated_s / self.cpu_s if self.cpu_s else 0.0

    @property
    def faults_per_hour(self) -> float:
        """Faults in an hour of simulated time."""
        return sum(self.faults.values()) * HOUR_S / self.simulated_s if self.simulated_s else 0.0


def live_order(order: Order) -> tuple[Order, Day]:
    """Live one day. What nodes log on a bad day is of no interest, and costs time."""
    logger = logging.getLogger("smtpraft")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        return order, live(Plan.draw(order.seed, nodes=order.nodes, seconds=order.seconds, only=order.only))
    finally:
        logger.setLevel(level)


def live_all(
    orders: Sequence[Order], jobs: int = 1, *, run: Callable[[Order], tuple[Order, Day]] = live_order
) -> Iterator[tuple[Order, Day]]:
    """Live all days, `jobs` at a time; yield each as it ends, in the order of `orders`."""
    if jobs <= 1:
        yield from map(run, orders)
        return
    with get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(run, orders, chunksize=4)
