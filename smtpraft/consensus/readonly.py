"""Linearizable reads without a log entry (Raft §8, thesis §6.4): is the leader still the leader?

Each read gets a number, one after the other. A heartbeat carries the number of the last read that waits, its answer
brings it back, and the number that a majority has brought back confirms all reads up to it: one round serves them all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from smtpraft.types import NodeId


@dataclass(frozen=True, slots=True)
class PendingRead:
    """A read that `node` asked for, when `index` was the commit index."""

    node: NodeId
    context: bytes
    index: int


@dataclass(slots=True)
class ReadOnly:
    """The reads of one leadership, oldest first."""

    confirmed: int = 0
    """How many reads were confirmed: the number of the last of them."""
    acks: dict[NodeId, int] = field(default_factory=dict)
    _pending: list[PendingRead] = field(default_factory=list)

    @property
    def last(self) -> int:
        """The number of the last read; with it in a heartbeat, all that wait are confirmed."""
        return self.confirmed + len(self._pending)

    def add(self, read: PendingRead) -> None:
        """Let a read wait."""
        self._pending.append(read)

    def heartbeat_context(self) -> bytes:
        """Return what a heartbeat carries: 8 bytes, big endian; nothing if no read waits."""
        return self.last.to_bytes(8, "big") if self._pending else b""

    def acknowledge(self, node: NodeId, context: bytes) -> bool:
        """A heartbeat's answer came back; return whether it says something new."""
        number = int.from_bytes(context, "big")
        if number > self.last or number <= self.acks.get(node, 0):
            return False
        self.acks[node] = number
        return True

    def confirm(self, number: int) -> list[PendingRead]:
        """Return the reads up to `number` that waited."""
        count = max(0, min(number, self.last) - self.confirmed)
        ready = self._pending[:count]
        del self._pending[:count]
        self.confirmed += count
        return ready
