"""The members as this node sees them: who they are, what the leader knows of their logs, how an election goes."""

from __future__ import annotations

from smtpraft.consensus.confchange import Membership
from smtpraft.consensus.progress import Inflights, Progress
from smtpraft.consensus.tally import EVERYTHING, VoteResult, joint_vote
from smtpraft.fastlog import quorum_index
from smtpraft.types import NodeId, node_order


class Tracker:
    """A membership with one `Progress` per member, itself included, all in `node_order`."""

    __slots__ = (
        "_incoming",
        "_max_inflight_bytes",
        "_max_inflight_messages",
        "_outgoing",
        "_self_id",
        "membership",
        "peers",
        "progress",
        "votes",
    )

    def __init__(self, self_id: NodeId, max_inflight_messages: int, max_inflight_bytes: int) -> None:
        self._self_id = self_id
        self._max_inflight_messages = max_inflight_messages
        self._max_inflight_bytes = max_inflight_bytes
        self.membership = Membership()
        self.progress: dict[NodeId, Progress] = {}
        self.peers: tuple[Progress, ...] = ()
        """All but this node."""
        self.votes: dict[NodeId, bool] = {}
        self._incoming: tuple[Progress, ...] = ()
        self._outgoing: tuple[Progress, ...] = ()

    def install(self, membership: Membership, fresh: frozenset[NodeId], last_index: int) -> None:
        """Switch to another membership; what is known of a member stays, unless it is in `fresh`."""
        progress = {}
        for node in sorted(membership.tracked, key=node_order):
            known = None if node in fresh else self.progress.get(node)
            if known is None:
                known = Progress(node, max(last_index, 1), self._inflights())
                # Or the next check of the quorum would count it as silent before it could say a word.
                known.recent_active = True
            known.is_learner = node in membership.learners
            progress[node] = known
        self.membership = membership
        self.progress = progress
        self.peers = tuple(each for node, each in progress.items() if node != self._self_id)
        self._incoming = tuple(each for node, each in progress.items() if node in membership.incoming)
        self._outgoing = tuple(each for node, each in progress.items() if node in membership.outgoing)

    def _inflights(self) -> Inflights:
        return Inflights(self._max_inflight_messages, self._max_inflight_bytes)

    def reset(self, last_index: int) -> None:
        """A term or a role begins: no votes, nothing known of anybody but oneself."""
        self.votes.clear()
        for progress in self.progress.values():
            progress.reset(last_index)
        own = self.progress.get(self._self_id)
        if own is not None:
            own.match_index = last_index

    def committed_index(self) -> int:
        """Return the highest index that majorities of both voter sets have stored."""
        index = EVERYTHING
        matched = []
        for progress in self._incoming:
            matched.append(progress.match_index)  # noqa: PERF401  a comprehension is a scope of its own, without types
        if matched:
            index = quorum_index(matched)
        if self._outgoing:
            index = min(index, quorum_index([progress.match_index for progress in self._outgoing]))
        return index

    def acknowledged(self, counters: dict[NodeId, int]) -> int:
        """Return the highest counter that majorities of both voter sets have reached; who is not there has 0."""
        index = EVERYTHING
        for voters in (self._incoming, self._outgoing):
            if voters:
                index = min(index, quorum_index([counters.get(progress.id, 0) for progress in voters]))
        return index

    def quorum_active(self) -> bool:
        """Have enough voters been heard from since the last check?"""
        active = {progress.id: progress.recent_active for progress in self.progress.values()}
        return joint_vote(self.membership.incoming, self.membership.outgoing, active) is VoteResult.WON

    def election(self) -> VoteResult:
        """Return how the election stands."""
        return joint_vote(self.membership.incoming, self.membership.outgoing, self.votes)

    @property
    def is_singleton(self) -> bool:
        """Is there exactly one voter?"""
        return len(self._incoming) == 1 and not self._outgoing
