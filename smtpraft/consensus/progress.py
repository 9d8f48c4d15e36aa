"""What a leader knows of one member's log: how far it matches, what was sent, whether to send more (thesis §10.2.1).

A member is in one of three states:
    PROBE       one append at a time, to find where the logs match
    REPLICATE   `next_index` moves ahead while sending; a window bounds what is on its way
    SNAPSHOT    the log no longer holds what the member needs: nothing is sent until it is back in the log
"""

from __future__ import annotations

import enum
from collections import deque

from smtpraft.types import NodeId


class ProgressState(enum.Enum):
    """How a member is fed."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


PROBE, REPLICATE, SNAPSHOT = ProgressState.PROBE, ProgressState.REPLICATE, ProgressState.SNAPSHOT


class Inflights:
    """The appends on their way to one member: the last index of each and its bytes, oldest first."""

    __slots__ = ("_max_bytes", "_max_messages", "_sent", "size_bytes")

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes  # 0: no limit
        self._sent: deque[tuple[int, int]] = deque()
        self.size_bytes = 0

    @property
    def count(self) -> int:
        """Messages on their way."""
        return len(self._sent)

    @property
    def full(self) -> bool:
        """Nothing more may be sent until something is acknowledged."""
        return self.is_full()

    def is_full(self) -> bool:
        """As `full`, and quicker to ask where compiled."""
        return len(self._sent) >= self._max_messages or 0 < self._max_bytes <= self.size_bytes

    def add(self, last_index: int, size_bytes: int) -> None:
        """One message was sent. A single one may exceed the limit in bytes."""
        assert not self.is_full(), "sent beyond the window"
        self._sent.append((last_index, size_bytes))
        self.size_bytes += size_bytes

    def free_to(self, index: int) -> None:
        """All messages up to `index` have arrived."""
        sent = self._sent
        while sent:
            last, size_bytes = sent[0]
            if last > index:
                return
            sent.popleft()
            self.size_bytes -= size_bytes

    def clear(self) -> None:
        """Forget them: they are taken for lost."""
        self._sent.clear()
        self.size_bytes = 0


class Progress:
    """One member as its leader sees it.

    Invariant: `match_index < next_index`.
    """

    __slots__ = (
        "flow_paused",
        "id",
        "inflights",
        "is_learner",
        "match_index",
        "next_index",
        "pending_snapshot",
        "recent_active",
        "sent_commit",
        "state",
    )

    def __init__(self, node: NodeId, next_index: int, inflights: Inflights) -> None:
        self.id = node
        self.state = PROBE
        self.match_index = 0
        self.next_index = next_index
        self.sent_commit = 0
        """The highest commit index sent; what lies above `next_index - 1` of it could not be used."""
        self.recent_active = False
        """Heard from since the last check of the quorum."""
        self.flow_paused = False
        """Nothing is sent until an answer or a heartbeat's answer comes."""
        self.pending_snapshot = 0
        self.is_learner = False
        self.inflights = inflights

    @property
    def paused(self) -> bool:
        """No append may be sent now."""
        return self.flow_paused or self.state is SNAPSHOT

    def reset(self, last_index: int) -> None:
        """A new term begins: nothing is known of this member."""
        self._enter(PROBE)
        self.match_index = 0
        self.next_index = last_index + 1
        self.sent_commit = 0
        self.recent_active = False

    def _enter(self, state: ProgressState) -> None:
        self.flow_paused = False
        self.pending_snapshot = 0
        self.state = state
        self.inflights.clear()

    def become_probe(self) -> None:
        """Find out anew what the member has; after a snapshot, begin behind it."""
        next_index = self.match_index + 1
        if self.state is SNAPSHOT:
            next_index = max(next_index, self.pending_snapshot + 1)
        self._enter(PROBE)
        self.next_index = next_index
        self.sent_commit = min(self.sent_commit, next_index - 1)

    def become_replicate(self) -> None:
        """The logs match up to `match_index`: stream what follows."""
        self._enter(REPLICATE)
        self.next_index = self.match_index + 1

    def become_snapshot(self, index: int) -> None:
        """The snapshot of `index` is on its way."""
        self._enter(SNAPSHOT)
        self.pending_snapshot = index
        self.next_index = index + 1
        self.sent_commit = index

    def sent(self, last_index: int, size_bytes: int) -> None:
        """An append went out with entries up to `last_index`; `size_bytes` is 0 if it had none."""
        if self.state is REPLICATE:
            if size_bytes:
                self.next_index = last_index + 1
                self.inflights.add(last_index, size_bytes)
            # With a full window even an empty append is a probe: one at a time.
            self.flow_paused = self.inflights.is_full()
        elif size_bytes:
            assert self.state is PROBE, "an append during a snapshot"
            self.flow_paused = True

    def update(self, index: int) -> bool:
        """Take note that the logs match up to `index`; return whether that is news."""
        if index <= self.match_index:
            return False
        self.match_index = index
        if self.next_index <= index:
            self.next_index = index + 1
        self.flow_paused = False
        return True

    def decrease(self, rejected: int, match_hint: int) -> bool:
        """The member has not what was said to be at `rejected`; go back, or return False if that is old news."""
        if self.state is REPLICATE:
            if rejected <= self.match_index:
                return False
            self.next_index = self.match_index + 1
        else:
            # Probes go out one at a time: an answer to any other than the last is stale.
            if rejected != self.next_index - 1:
                return False
            self.next_index = max(match_hint + 1 if match_hint < rejected else rejected, self.match_index + 1)
            self.flow_paused = False
        self.sent_commit = min(self.sent_commit, self.next_index - 1)
        return True

    def can_bump_commit(self, index: int) -> bool:
        """Would an empty append with commit index `index` tell the member something it can use?"""
        return self.sent_commit < index and self.sent_commit < self.next_index - 1
