"""Mail: how many messages are accepted a second, how long a client waits for its 250, what a message costs."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from smtpraft.cli.bench import floor, load
from smtpraft.cli.bench.cluster import Cluster, NodesTarget
from smtpraft.cli.bench.load import Load
from smtpraft.cli.bench.plan import Plan
from smtpraft.cli.bench.target import Target
from smtpraft.cluster.ports import free_ports

SIZES: Final = {"1k": 1024, "4k": 4096, "10k": 10_240, "100k": 102_400, "1m": 1 << 20}
SESSIONS: Final = (1, 10, 100)
RUN_S: Final = 2.0
_WARM_UP_S: Final = 0.6


@dataclass(frozen=True, slots=True)
class Case:
    """A load."""

    size: str
    sessions: int
    anew: bool = False

    @property
    def name(self) -> str:
        return f"mail.{self.size}.{self.sessions}" + (".anew" if self.anew else "")


def run_case(target: Target, case: Case, seconds: float) -> tuple[Load, float]:
    """Load `target` so; return what the client saw, and the CPU of a message in µs, its delivery included."""
    ports = target.ports()
    before = sum(target.cpu_s().values())
    found = load.send_mail(
        ports[: case.sessions], target.recipient, case.sessions, SIZES[case.size], seconds=seconds, anew=case.anew
    )
    target.wait_delivered()
    cpu_us = (sum(target.cpu_s().values()) - before) / found.count * 1e6
    os.sync()  # leave no pages to be written to the next run
    return found, cpu_us


def note(plan: Plan, name: str, case: Case, target: Target, seconds: float) -> Load:
    """Run `case` and note its figures as those of `name`."""
    found, cpu_us = run_case(target, case, seconds)
    prefix = f"{name}.{case.name}"
    plan.figures.add(f"{prefix}.rate", found.rate)
    plan.figures.add(f"{prefix}.p50_ms", found.p50_ms)
    plan.figures.add(f"{prefix}.p99_ms", found.p99_ms)
    plan.figures.add(f"{prefix}.cpu_us", cpu_us)
    plan.figures.shapes[f"{prefix}.wait_ms"] = found.distribution()  # of the last round
    plan.say(
        f"{name:10} {case.name:18} {found.rate:7.0f}/s  p50 {found.p50_ms:8.3f} ms  p99 {found.p99_ms:8.3f} ms  "
        f"CPU {cpu_us:6.0f} µs"
    )
    return found


def measure(plan: Plan) -> None:
    """The floor and one session beside it, round after round; then all sessions with all sizes over all nodes, once."""
    if plan.target:
        _grid(plan, Given(plan.target))
        return
    (sink_port,) = free_ports(1)
    with plan.place("mail") as place:
        cluster = Cluster(place / "nodes", sink_port)
        try:
            cluster.begin()
            leader, everywhere = NodesTarget(cluster, "leader"), NodesTarget(cluster, "all nodes")
            run_case(leader, Case("4k", 10), plan.seconds(_WARM_UP_S))
            beside_the_floor(plan, leader)
            _grid(plan, everywhere)
            changes = cluster.leader_changes()
            plan.figures.add("smtpraft.leader_changes", changes)
            if changes > 1:
                plan.figures.warnings.append(f"{changes - 1} change(s) of leader without a fault during mail")
            cluster.end()
        finally:
            cluster.kill()


def beside_the_floor(plan: Plan, leader: Target) -> None:
    """One session at the leader, and the floor just before."""
    for number in range(1, plan.rounds + 1):
        least = floor.measure(plan.directory, plan.seconds(1.0))
        plan.figures.add("floor.sync3.p50_us", least.sync_p50_us)
        plan.figures.add("floor.sync3.p99_us", least.sync_p99_us)
        plan.figures.add("floor.trip.p50_us", least.trip_p50_us)
        plan.figures.add("floor.trip.p99_us", least.trip_p99_us)
        found, cpu_us = run_case(leader, Case("4k", 1), plan.seconds(RUN_S))
        plan.figures.add("smtpraft.floor.4k.1.p50_us", found.p50_ms * 1e3)
        plan.figures.add("smtpraft.floor.4k.1.p99_us", found.p99_ms * 1e3)
        plan.figures.add("smtpraft.floor.4k.1.cpu_us", cpu_us)
        plan.figures.add("generator.cpu_us", found.cpu_us)
        plan.say(
            f"floor {number}/{plan.rounds}: sync {least.sync_p50_us:.0f} µs, trip {least.trip_p50_us:.0f} µs, "
            f"1 session {found.p50_ms * 1e3:.0f} µs"
        )


def _grid(plan: Plan, target: Target) -> None:
    for size in SIZES:
        for sessions in SESSIONS:
            note(plan, "grid", Case(size, sessions), target, plan.seconds(RUN_S if sessions > 1 else 1.0))


def halves(plan: Plan) -> None:
    """Two clusters take the same mail in turn: one as it is, one that runs on the plain halves."""
    if not load.COMPILED:
        plan.figures.reasons["halves."] = "the compiled half is not built, or SMTPRAFT_PURE is set"
        return
    if plan.target:
        plan.figures.reasons["halves."] = "a cluster was given"
        return
    with plan.place("halves") as place:
        clusters: dict[str, Cluster] = {}
        try:
            for name, environ in (("compiled", {}), ("pure", {"SMTPRAFT_PURE": "1"})):
                clusters[name] = Cluster(place / name, 1, environ=environ)
                clusters[name].begin()
            in_turn(plan, {name: NodesTarget(cluster, "all nodes") for name, cluster in clusters.items()})
            for cluster in clusters.values():
                cluster.end()
        finally:
            for cluster in clusters.values():
                cluster.kill()


def in_turn(plan: Plan, targets: dict[str, NodesTarget]) -> None:
    """Note `halves.NAME.*` of all targets, round after round."""
    case = Case("4k", 100)
    for target in targets.values():
        run_case(target, case, plan.seconds(_WARM_UP_S))
    for number in range(1, plan.rounds + 1):
        for name, target in targets.items():
            found, cpu_us = run_case(target, case, plan.seconds(RUN_S))
            plan.figures.add(f"halves.{name}.rate", found.rate)
            plan.figures.add(f"halves.{name}.p99_ms", found.p99_ms)
            plan.figures.add(f"halves.{name}.cpu_us", cpu_us)
            plan.say(f"halves {number}/{plan.rounds}: {name:8} {found.rate:6.0f}/s")


@dataclass(frozen=True)
class Given:
    """A cluster that somebody else started: only what a client sees is known of it."""

    smtp_ports: Sequence[int]

    @property
    def name(self) -> str:
        return "given"

    @property
    def recipient(self) -> str:
        return "somebody@discard.example"

    def ports(self) -> Sequence[int]:
        return self.smtp_ports

    def cpu_s(self) -> dict[str, float]:
        return {}

    def wait_delivered(self) -> None:
        """Nobody knows: leave it some time."""
        time.sleep(0.5)
