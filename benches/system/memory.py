"""Does memory grow? Two hundred thousand messages through three nodes, a look after every twenty thousand.

python -m benches.system.memory [--messages N] [--write docs/performance.md]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benches.system.document import put
from smtpraft.cli.bench import load
from smtpraft.cli.bench.cluster import Cluster, NodesTarget
from smtpraft.cli.bench.mail import SIZES
from smtpraft.cli.bench.processes import disk_mib, memory_mib

SESSIONS: Final = 30
STEPS: Final = 10


@dataclass(frozen=True, slots=True)
class Sample:
    """After so many messages, all of them delivered; MiB by node."""

    messages: int
    rate: float
    resident_mib: tuple[float, ...]
    anonymous_mib: tuple[float, ...]
    disk_mib: tuple[float, ...]


def watch(cluster: Cluster, messages: int, say: Callable[[str], None]) -> list[Sample]:
    """Send `messages` over sessions spread over all nodes; return a sample of before, and of every tenth of it."""
    target = NodesTarget(cluster, "all nodes")
    samples = [_sample(cluster, 0, 0.0)]
    for step in range(1, STEPS + 1):
        found = load.send_mail(target.ports(), target.recipient, SESSIONS, SIZES["4k"], messages=messages // STEPS)
        target.wait_delivered()
        samples.append(_sample(cluster, step * (messages // STEPS), found.rate))
        resident = ", ".join(f"{mib:.0f}" for mib in samples[-1].resident_mib)
        say(f"{samples[-1].messages} messages: {resident} MiB, {samples[-1].rate:.0f}/s")
    return samples


def _sample(cluster: Cluster, messages: int, rate: float) -> Sample:
    pids = [node.process.pid for node in cluster.nodes if node.process is not None]
    sizes = [memory_mib(pid) for pid in pids]
    return Sample(
        messages,
        rate,
        tuple(resident for resident, _ in sizes),
        tuple(anonymous for _, anonymous in sizes),
        tuple(disk_mib(node.directory / "data") for node in cluster.nodes),
    )


def table(samples: list[Sample]) -> str:
    """Return the samples as Markdown."""
    lines = ["| messages | messages/s | resident | of it anonymous | on disk |", "|---|---|---|---|---|"]
    for sample in samples:
        cells = [
            " / ".join(f"{mib:.0f}" for mib in nodes)
            for nodes in (sample.resident_mib, sample.anonymous_mib, sample.disk_mib)
        ]
        rate = f"{sample.rate:.0f}" if sample.rate else ""
        lines.append(f"| {sample.messages} | {rate} | {' | '.join(cells)} |")
    return "MiB of each node:\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    """Watch, print."""
    parser = argparse.ArgumentParser(prog="python -m benches.system.memory", description=__doc__)
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table into this page")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="smtpraft-memory-") as directory:
        cluster = Cluster(Path(directory) / "nodes", 1)
        try:
            cluster.begin()
            text = table(watch(cluster, arguments.messages, print))
            cluster.end()
        finally:
            cluster.kill()
    print(text)
    if arguments.write:
        arguments.write.write_text(put(arguments.write.read_text("utf-8"), "memory", text), "utf-8")


if __name__ == "__main__":
    main()
