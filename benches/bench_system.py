"""That `make bench-system` still works: a small round of it, without Postfix (figures: `docs/performance.md`)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from benches.system import load, report
from benches.system.comparison import Plan, compare
from benches.system.nodes import Cluster, NodesTarget
from smtpraft.cli.demo.nodes import free_ports

PLAN: Final = Plan(rounds=1, run_s=0.1, latency_s=0.2, floor_s=0.1, warm_up=0.05)


@pytest.mark.skipif(bool(load.why_not()), reason=load.why_not())
def bench_a_small_round(tmp_path: Path) -> None:
    """A figure for every case, and tables of them."""
    (sink_port,) = free_ports(1)
    cluster = Cluster(tmp_path, sink_port)
    try:
        cluster.begin()
        targets = [NodesTarget(cluster, "leader"), NodesTarget(cluster, "all nodes")]
        results = compare(targets, tmp_path, PLAN, lambda line: None)
        cluster.end()
    finally:
        cluster.kill()
    assert all(len(results.runs[target.name, 100]) == 1 for target in targets)
    assert "smtpraft, all nodes" in report.comparison_text(results)
