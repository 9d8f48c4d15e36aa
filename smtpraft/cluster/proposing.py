"""The way of proposals to the leader: what gathered in one turn, of this node and of those that forward, is a batch.

Nothing is kept for others, but while a leader tries to hand over. What a follower forwards to a node that leads no
longer is dropped; its sender repeats it, to whoever leads then. Loop thread only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final

from smtpraft import fastlog
from smtpraft.cluster.heartbeats import Heartbeats
from smtpraft.cluster.outbound import Outbound
from smtpraft.cluster.proposals import Proposals
from smtpraft.consensus import Message, MessageType, ProposalDropped, RawNode, Role
from smtpraft.types import NO_NODE, NodeId

log = logging.getLogger(__name__)

HELD_BYTES_MAX: Final = (
    16 * 1024 * 1024
)  # forwarded in the tens of milliseconds that a hand-over takes; more is dropped


class Proposing:
    """Hands proposals on. `contact_window_s` is how old a majority's last word to this leader may be, `clock` has the
    same time as whoever wants turns (seconds)."""

    def __init__(
        self,
        core: RawNode,
        proposals: Proposals,
        heartbeats: Heartbeats,
        outbound: Outbound,
        connected: Callable[[NodeId], bool],
        contact_window_s: float,
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._core = core
        self._proposals = proposals
        self._heartbeats = heartbeats
        self._outbound = outbound
        self._connected = connected
        self._clock = clock
        self._contact_window_s = contact_window_s
        self._forwarded: list[bytes] = []
        self._held_bytes = 0
        self._senders: dict[NodeId, None] = {}  # in the order in which they sent, for one seed to be one history

    @property
    def has_forwarded(self) -> bool:
        """Has a follower forwarded anything since the last turn?"""
        return bool(self._forwarded)

    @property
    def has_some(self) -> bool:
        """May a turn have something to propose, of this node or of others?"""
        return bool(self._forwarded) or self._proposals.has_some

    def forwarded(self, sender: NodeId, payloads: Sequence[tuple[int, bytes]]) -> None:
        """A follower wants these proposed, in this order."""
        commands = [payload for _, payload in payloads]
        self._forwarded += commands
        self._held_bytes += sum(map(len, commands))
        self._senders[sender] = None

    def turn(self, leader_since: float) -> None:
        """Hand what gathered to the leader, be it this node, leading since `leader_since` (seconds, monotonic)."""
        if not self._forwarded and not self._proposals.has_some:
            return
        if self._core.role is Role.LEADER:
            if self._core.hands_over and self._held_bytes <= HELD_BYTES_MAX:
                return  # What is proposed now would be dropped; if nobody takes over, it is proposed here after all.
            self._lead(leader_since)
        else:
            self._follow()
        self._forwarded.clear()
        self._held_bytes = 0
        self._senders.clear()

    def _lead(self, leader_since: float) -> None:
        core = self._core
        now = self._clock()
        # Out of touch with a majority, hold what is ours back: what was never appended can be refused for certain.
        fresh = now - max(self._heartbeats.quorum_contact_at(now), leader_since) <= self._contact_window_s
        payloads = self._proposals.take(now, core.term, in_company=bool(self._forwarded)) if fresh else []
        payloads += self._forwarded
        if payloads:
            try:
                core.propose(payloads)
            except ProposalDropped as error:
                log.debug("dropped proposals=%d reason=%s", len(payloads), error)  # their senders repeat them
        for node in self._senders:
            self._outbound.hurry(node, core.log.last_index)

    def _follow(self) -> None:
        core, leader = self._core, self._core.leader_id
        now = self._clock()
        while leader != NO_NODE and self._proposals.has_work(now) and self._connected(leader):
            payloads = self._proposals.take(now)
            if not payloads:
                return
            batch = tuple((fastlog.ENTRY_NORMAL, payload) for payload in payloads)
            self._outbound.send(Message(MessageType.PROP, to=leader, sender=core.id, payloads=batch))
