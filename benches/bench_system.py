"""That `smtpraft bench` still works: a small part of it (figures: `docs/performance.md`)."""

from __future__ import annotations

from pathlib import Path

from smtpraft.cli.bench import logwrites, mail
from smtpraft.cli.bench.cluster import Cluster, NodesTarget
from smtpraft.cli.bench.figures import Figures
from smtpraft.cli.bench.logcluster import LogCluster
from smtpraft.cli.bench.mail import Case
from smtpraft.cli.bench.plan import Plan


def bench_a_little_mail(tmp_path: Path) -> None:
    """Figures of what a client sees and of what the nodes use."""
    figures = Figures()
    plan = Plan(figures, tmp_path, 1, True, lambda line: None)
    cluster = Cluster(tmp_path / "nodes", 1)
    try:
        cluster.begin()
        mail.note(plan, "smtpraft", Case("4k", 10), NodesTarget(cluster, "all nodes"), 0.5)
        cluster.end()
    finally:
        cluster.kill()
    assert figures.median("smtpraft.mail.4k.10.rate")
    assert figures.median("smtpraft.mail.4k.10.cpu_us")
    waits = [ms for _, ms in figures.shapes["smtpraft.mail.4k.10.wait_ms"]]
    assert waits == sorted(waits)


def bench_a_few_writes(tmp_path: Path) -> None:
    """Each is on a majority's disks when it is answered; nothing else can be seen from outside."""
    figures = Figures()
    cluster = LogCluster(tmp_path)
    try:
        cluster.begin()
        logwrites.write(Plan(figures, tmp_path, 1, True, lambda line: None), "smtpraft", cluster, 10, 256, 0.3)
    finally:
        cluster.end()
    assert figures.median("smtpraft.log.256.10.rate")
