"""`smtpraft simulate`: thousands of bad days, each from a seed, in virtual time."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from typing import Final

from smtpraft.cli.exits import CommandError, Exit
from smtpraft.cli.output import print_json
from smtpraft.simulator.campaign import HOUR_S, Order, Totals, live_all
from smtpraft.simulator.plan import FAULTS
from smtpraft.simulator.run import Day

PROGRESS_S: Final = 1.0
FRESH: Final = 10**9


def simulate(arguments: argparse.Namespace) -> int:
    """Live the days that were asked for; say what they showed. The exit status tells whether a promise was broken."""
    first, count = _seeds(arguments)
    only = _faults(arguments.only)
    orders = [Order(seed, arguments.nodes, arguments.seconds, only) for seed in range(first, first + count)]
    totals = Totals()
    progress = _Progress(count, quiet=arguments.write_out == "json")
    failures: list[tuple[Order, Day]] = []
    for order, day in live_all(orders, arguments.jobs):
        totals.add(day)
        progress.show(totals)
        if day.failed:
            failures.append((order, day))
            progress.clear()
            if arguments.write_out != "json":
                _tell(order, day)
            if len(failures) >= arguments.stop_after:
                break
    progress.clear()
    _report(arguments, first, totals, failures, progress.elapsed_s())
    return Exit.FAILED if failures else Exit.OK


def _seeds(arguments: argparse.Namespace) -> tuple[int, int]:
    """Return the first seed and how many."""
    if arguments.fresh:
        return secrets.randbelow(FRESH), arguments.seeds or 1000
    if arguments.seed is not None:
        return arguments.seed, arguments.seeds or 1
    return 0, arguments.seeds or 1000


def _faults(text: str | None) -> frozenset[str] | None:
    if text is None:
        return None
    names = frozenset(name for name in text.split(",") if name and name != "none")
    unknown = sorted(names.difference(FAULTS))
    if unknown:
        raise CommandError(Exit.USAGE, f"no fault is called {', '.join(unknown)}; there are: {', '.join(FAULTS)}")
    return names


class _Progress:
    """One line on the terminal, rewritten once a second; nothing where nobody looks."""

    def __init__(self, count: int, *, quiet: bool) -> None:
        self._count = count
        self._shown = False
        self._begun = time.monotonic()
        self._next = self._begun
        self._on = not quiet and sys.stderr.isatty()

    def elapsed_s(self) -> float:
        return time.monotonic() - self._begun

    def show(self, totals: Totals) -> None:
        now = time.monotonic()
        if not self._on or now < self._next:
            return
        self._next = now + PROGRESS_S
        rate = totals.simulated_s / max(now - self._begun, 1e-9)
        print(
            f"\r{totals.seeds}/{self._count} seeds  {totals.simulated_s / HOUR_S:.2f} h simulated  {rate:.0f}x  "
            f"{totals.failed} violations\x1b[K",
            end="",
            file=sys.stderr,
            flush=True,
        )
        self._shown = True

    def clear(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._shown = False


def _tell(order: Order, day: Day) -> None:
    """One violation, so that a stranger can go on from here."""
    print(f"VIOLATION of {day.rule} on {day.plan}, event {day.events}")
    print(f"  {day.text.rstrip()}")
    print("  last steps (seconds, node, what):")
    for line in day.trace:
        print(f"    {line}")
    print(f"  again: {order.replay()}", flush=True)


def _report(
    arguments: argparse.Namespace, first: int, totals: Totals, failures: list[tuple[Order, Day]], elapsed_s: float
) -> None:
    facts: dict[str, object] = {
        "seeds": totals.seeds,
        "first_seed": first,
        "violations": totals.failed,
        "simulated_h": round(totals.simulated_s / HOUR_S, 3),
        "real_s": round(elapsed_s, 1),
        "speed": round(totals.simulated_s / max(elapsed_s, 1e-9), 1),
        "speed_per_core": round(totals.speed, 1),
        "events": totals.events,
        "events_per_s": round(totals.events / max(elapsed_s, 1e-9)),
        "checks": totals.checks,
        "commits": totals.commits,
        "writes": totals.writes,
        "answered": totals.acknowledged,
        "reads": totals.reads,
        "elections": totals.elections,
        "faults_per_h": round(totals.faults_per_hour),
        "faults": dict(sorted(totals.faults.items())),
    }
    if arguments.write_out == "json":
        facts["failures"] = [
            {"seed": order.seed, "rule": day.rule, "text": day.text, "trace": day.trace, "again": order.replay()}
            for order, day in failures
        ]
        print_json(facts)
        return
    print(f"seeds {first} to {first + totals.seeds - 1}: {totals.failed} violations")
    print(
        f"{facts['simulated_h']} h simulated in {elapsed_s:.0f} s: {facts['speed']}x real time, "
        f"{facts['speed_per_core']}x per core; {totals.events} events, {facts['events_per_s']}/s"
    )
    print(
        f"{totals.commits} entries committed, {totals.acknowledged} of {totals.writes} writes answered, "
        f"{totals.reads} reads, {totals.elections} elections, {totals.checks} checks"
    )
    kinds = ", ".join(f"{name} {count}" for name, count in sorted(totals.faults.items()))
    print(f"faults: {facts['faults_per_h']} an hour: {kinds or 'none'}")
