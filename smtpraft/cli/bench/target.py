"""What is measured: something that takes mail at some ports, and the CPU that it has used so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from smtpraft.errors import SmtpRaftError


class BenchFailed(SmtpRaftError):
    """Something did not do what it must; a figure taken here would be of something else."""


class Target(Protocol):
    """A system, the nodes of it that get the load, and what becomes of the mail."""

    @property
    def name(self) -> str: ...

    @property
    def recipient(self) -> str: ...

    def ports(self) -> Sequence[int]:
        """Where the sessions go, evenly. Asked before every run: a leader is where it is."""
        ...

    def cpu_s(self) -> Mapping[str, float]:
        """By node, or by the name of processes that do the same; since it started."""
        ...

    def wait_delivered(self) -> None:
        """Return when nothing is left to be delivered."""
        ...
