"""Rate, CPU, syncs and latency: every target in turn, round after round, with 1, 10 and 100 sessions."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from . import floor, latency, load
from .floor import Floor
from .latency import Latency
from .processes import busy_share
from .target import Target, Usage

SESSIONS: Final = (1, 10, 100)
_WARM_UP_MESSAGES: Final = {1: 300, 10: 1000, 100: 2000}  # enough that every session has its process at Postfix


@dataclass(frozen=True, slots=True)
class Run:
    """One target, one number of sessions, once."""

    messages: int
    send_s: float
    deliver_s: float
    """From the last 250 until nothing was left to be delivered."""
    used: Usage
    """Delivery included."""

    @property
    def rate(self) -> float:
        """Messages accepted in a second."""
        return self.messages / self.send_s


Case = tuple[str, int]
"""A target by its name, and how many sessions."""


@dataclass
class Results:
    """What was measured, by case and in the order of the rounds."""

    targets: Sequence[str]
    runs: defaultdict[Case, list[Run]] = field(default_factory=lambda: defaultdict(list))
    latencies: defaultdict[Case, list[Latency]] = field(default_factory=lambda: defaultdict(list))
    floors: list[Floor] = field(default_factory=list)
    busy_shares: list[float] = field(default_factory=list)
    """Of all CPUs, before each round: what others do on this machine, and the nodes' heartbeats."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of it."""

    rounds: int
    run_s: float
    latency_s: float
    floor_s: float
    warm_up: float = 1.0
    """Less than 1: shorter, and the first run of a case pays for what starts with it."""


def compare(targets: Sequence[Target], directory: Path, plan: Plan, say: Callable[[str], None]) -> Results:
    """Measure all targets. Neighbours in `targets` are neighbours in time: put next to each other what is compared.

    Raises:
        BenchFailed: a figure cannot be had.
    """
    results = Results([target.name for target in targets])
    rates: dict[Case, float] = {}
    for sessions in SESSIONS:
        for target in _able(targets, sessions):
            rates[target.name, sessions] = _run(
                target, sessions, round(plan.warm_up * _WARM_UP_MESSAGES[sessions])
            ).rate
    for number in range(1, plan.rounds + 1):
        results.busy_shares.append(busy_share(plan.floor_s))
        results.floors.append(floor.measure(directory, plan.floor_s))
        for sessions in SESSIONS:
            for target in _able(targets, sessions):
                case = target.name, sessions
                run = _run(target, sessions, max(10 * sessions, round(rates[case] * plan.run_s)))
                rates[case] = run.rate
                results.runs[case].append(run)
                wait = latency.measure(target.ports(), target.recipient, sessions, plan.latency_s)
                results.latencies[case].append(wait)
                _rest(target)
                say(
                    f"round {number}/{plan.rounds}  {target.name:28} {sessions:3} x  {run.rate:5.0f}/s  "
                    f"p50 {wait.p50_ms:6.2f} ms  p99 {wait.p99_ms:6.2f} ms"
                )
    return results


def _able(targets: Sequence[Target], sessions: int) -> list[Target]:
    """Return the targets that have no more ports than there are sessions."""
    return [target for target in targets if len(target.ports()) <= sessions]


def _run(target: Target, sessions: int, messages: int) -> Run:
    ports = target.ports()
    before = target.usage()
    send_s = load.send(ports, target.recipient, sessions, messages)
    deliver_s = _rest(target)
    return Run(messages, send_s, deliver_s, target.usage().since(before))


def _rest(target: Target) -> float:
    """Leave nothing to the next run: neither mail nor pages to be written. Return how long delivery took."""
    started = os.times().elapsed
    target.wait_delivered()
    deliver_s = os.times().elapsed - started
    os.sync()
    return deliver_s
