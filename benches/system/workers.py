"""What SMTP workers cost and bring: nodes with `smtp.workers` 0 and 1 in turn, the same load, medians of the rounds.

python -m benches.system.workers [--rounds N] [--write docs/performance.md]
"""

from __future__ import annotations

import argparse
import math
import re
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

from benches.system.document import put
from smtpraft.cli.bench.cluster import Cluster, NodesTarget, metric
from smtpraft.cli.bench.mail import Case, run_case
from smtpraft.cli.client import Client
from smtpraft.cli.demo.nodes import DemoNode

SETUPS: Final = tuple((nodes, workers) for nodes in (3, 1) for workers in (0, 1))
CASES: Final = ((1, 1.5), (10, 1.5), (100, 2.5))
SAMPLE_S: Final = 0.15
_TRIP: Final = re.compile(
    r'^smtpraft_network_peer_round_trip_time_seconds_bucket\{le="([^"]+)",.*\} (\S+)$', re.MULTILINE
)


@dataclass(slots=True)
class Runs:
    """One row: what each round found."""

    rates: list[float] = field(default_factory=list)
    p50s_ms: list[float] = field(default_factory=list)
    p99s_ms: list[float] = field(default_factory=list)
    cpus_us: list[float] = field(default_factory=list)
    lags_ms: list[float] = field(default_factory=list)
    """Of all samples of all rounds."""
    trips: dict[float, float] = field(default_factory=dict)
    """Heartbeats to a peer and back: cumulative counts by upper bound in seconds."""


Found = dict[tuple[int, int, int], Runs]
"""By nodes, workers, sessions."""


def measure(rounds: int) -> Found:
    """Run all setups in turn, in the other order every second time."""
    found: Found = {}
    for number in range(rounds):
        for nodes, workers in SETUPS if number % 2 == 0 else SETUPS[::-1]:
            with tempfile.TemporaryDirectory(prefix="smtpraft-workers-") as directory:
                cluster = Cluster(Path(directory) / "nodes", 1, nodes, {"SMTPRAFT_SMTP__WORKERS": str(workers)})
                try:
                    cluster.begin()
                    target = NodesTarget(cluster, "all nodes")
                    run_case(target, Case("4k", 10), 0.6)
                    for sessions, seconds in CASES:
                        runs = found.setdefault((nodes, workers, sessions), Runs())
                        _note(runs, cluster.find_leader(), target, Case("4k", sessions), seconds)
                    cluster.end()
                finally:
                    cluster.kill()
        print(f"round {number + 1}")
    return found


def _note(runs: Runs, leader: DemoNode, target: NodesTarget, case: Case, seconds: float) -> None:
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(SAMPLE_S):
            runs.lags_ms.append(metric(leader, "smtpraft_loop_lag_seconds") * 1000)

    before = _trips(leader)
    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        load, cpu_us = run_case(target, case, seconds)
    finally:
        stop.set()
        sampler.join()
    for bound, count in _trips(leader).items():
        runs.trips[bound] = runs.trips.get(bound, 0.0) + count - before.get(bound, 0.0)
    runs.rates.append(load.rate)
    runs.p50s_ms.append(load.p50_ms)
    runs.p99s_ms.append(load.p99_ms)
    runs.cpus_us.append(cpu_us)


def _trips(leader: DemoNode) -> dict[float, float]:
    text = Client([], timeout_s=5.0).ask(f"127.0.0.1:{leader.admin_port}", "GET", "/metrics").body.decode()
    found: dict[float, float] = {}
    for bound, count in _TRIP.findall(text):
        found[float(bound)] = found.get(float(bound), 0.0) + float(count)
    return found


def quantile_ms(trips: dict[float, float], share: float) -> float | None:
    """Return a quantile of a histogram, in ms, as Prometheus does: evenly spread within its bucket."""
    wanted = share * trips.get(math.inf, 0.0)
    below, count = 0.0, 0.0
    for bound in sorted(trips):
        if wanted and trips[bound] >= wanted:
            if math.isinf(bound):
                return below * 1000
            return (below + (bound - below) * (wanted - count) / (trips[bound] - count)) * 1000
        below, count = bound, trips[bound]
    return None


def table(found: Found) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| nodes | sessions | workers | messages/s | p50, ms | p99, ms | CPU, µs | loop late, ms | heartbeat, ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (nodes, workers, sessions), runs in sorted(found.items(), key=lambda row: (-row[0][0], row[0][2], row[0][1])):
        lags = sorted(runs.lags_ms)
        trips = [quantile_ms(runs.trips, share) for share in (0.5, 0.99)]
        cells = (
            f"{median(runs.rates):.0f} ({min(runs.rates):.0f} to {max(runs.rates):.0f})",
            f"{median(runs.p50s_ms):.2f}",
            f"{median(runs.p99s_ms):.1f}",
            f"{median(runs.cpus_us):.0f}",
            f"{median(lags):.1f} / {lags[len(lags) * 95 // 100]:.1f}",
            " / ".join(f"{trip:.1f}" for trip in trips if trip is not None),
        )
        lines.append(f"| {nodes} | {sessions} | {workers} | {' | '.join(cells)} |")
    rounds = max(len(runs.rates) for runs in found.values())
    return f"Medians of {rounds} rounds:\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benches.system.workers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table into this page")
    arguments = parser.parse_args()
    text = table(measure(arguments.rounds))
    print(text)
    if arguments.write:
        arguments.write.write_text(put(arguments.write.read_text("utf-8"), "workers", text), "utf-8")


if __name__ == "__main__":
    main()
