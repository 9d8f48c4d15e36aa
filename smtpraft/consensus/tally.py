"""Quorum arithmetic: what a majority of one voter set, or of both of a joint membership, has said (thesis §4.3)."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from smtpraft.fastlog import quorum_index
from smtpraft.types import NodeId

EVERYTHING: Final = 2**64 - 1
"""What an empty voter set has committed. Only the half of a joint membership that is not there is ever empty."""


class VoteResult(enum.Enum):
    """The state of an election."""

    PENDING = "pending"
    WON = "won"
    LOST = "lost"


def majority_index(matched: Sequence[int]) -> int:
    """Return the highest index that a majority has; `matched` has one index per voter, in any order."""
    return quorum_index(matched) if matched else EVERYTHING


def joint_index(incoming: Sequence[int], outgoing: Sequence[int]) -> int:
    """Return the highest index that majorities of both voter sets have; an absent `outgoing` is empty."""
    index = majority_index(incoming)
    return min(index, quorum_index(outgoing)) if outgoing else index


def majority_vote(voters: Collection[NodeId], votes: Mapping[NodeId, bool]) -> VoteResult:
    """Count `votes` (granted or not) of one voter set. An empty set agrees to everything."""
    needed = len(voters) // 2 + 1 if voters else 0
    granted = refused = 0
    for voter in voters:
        vote = votes.get(voter)
        if vote is not None:
            granted += vote
            refused += not vote
    if granted >= needed:
        return VoteResult.WON
    if len(voters) - refused < needed:
        return VoteResult.LOST
    return VoteResult.PENDING


def joint_vote(incoming: Collection[NodeId], outgoing: Collection[NodeId], votes: Mapping[NodeId, bool]) -> VoteResult:
    """Count votes where both voter sets must agree."""
    first, second = majority_vote(incoming, votes), majority_vote(outgoing, votes)
    if first is second:
        return first
    if VoteResult.LOST in {first, second}:
        return VoteResult.LOST
    return VoteResult.PENDING
