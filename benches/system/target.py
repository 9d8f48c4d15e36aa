"""What is measured: something that takes mail at some ports, and what it has used so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class BenchFailed(Exception):
    """Something did not do what it must; a figure taken here would be of something else."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a target has used since it started."""

    cpu_s: Mapping[str, float]
    """By node, or by the name of processes that do the same."""
    syncs: Mapping[str, float]
    """Syncs of the log by node; empty where nobody counts them."""
    leader: str = ""
    """The node that leads now."""

    def since(self, earlier: Usage) -> Usage:
        """Return the difference. What is not there any more counts for nothing."""
        cpu_s, syncs = _difference(self.cpu_s, earlier.cpu_s), _difference(self.syncs, earlier.syncs)
        return Usage(cpu_s, syncs, self.leader)


class Target(Protocol):
    """A system, the nodes of it that get the load, and what becomes of the mail."""

    @property
    def name(self) -> str: ...

    @property
    def recipient(self) -> str: ...

    def ports(self) -> Sequence[int]:
        """Where the sessions go, evenly. Asked before every run: a leader is where it is."""
        ...

    def usage(self) -> Usage: ...

    def wait_delivered(self) -> None:
        """Return when nothing is left to be delivered."""
        ...


def _difference(now: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0.0) for name, value in now.items()}
