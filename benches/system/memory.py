"""Does memory grow? Two hundred thousand messages through three nodes, a look after every twenty thousand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from . import load
from .nodes import Cluster, NodesTarget
from .processes import disk_mib, memory_mib

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
        send_s = load.send(target.ports(), target.recipient, SESSIONS, messages // STEPS)
        target.wait_delivered()
        samples.append(_sample(cluster, step * (messages // STEPS), messages / STEPS / send_s))
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
