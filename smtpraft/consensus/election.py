"""Who may lead: the interface of the two rules, and Raft's, by votes (Raft §5.2, §5.4.1; pre-vote: thesis §9.6)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, Protocol

from smtpraft.consensus import leader
from smtpraft.consensus.messages import Message, MessageType, Role
from smtpraft.consensus.tally import VoteResult
from smtpraft.types import NO_NODE, node_order

if TYPE_CHECKING:
    from smtpraft.consensus.raft import Raft

_COMMITTED: Final = struct.Struct(">QQ")

PRE_VOTE, PRE_VOTE_RESP = MessageType.PRE_VOTE, MessageType.PRE_VOTE_RESP
VOTE, VOTE_RESP = MessageType.VOTE, MessageType.VOTE_RESP

TRANSFER: Final = b"CampaignTransfer"
"""Context of a request that the leader itself asked for: stickiness does not hold it up."""


class Election(Protocol):
    """How a node becomes leader. Replication, commit and membership are the same under every rule."""

    def tick(self, raft: Raft) -> None:
        """One tick has passed for a node that does not lead, before its election timeout is looked at."""

    def campaign(self, raft: Raft, *, transfer: bool) -> None:
        """The election timeout is over, or (`transfer`) the leader hands over."""

    def ignores(self, raft: Raft, message: Message) -> bool:
        """Is this request of a later term to be taken as not received?"""

    def answer(self, raft: Raft, message: Message) -> None:
        """Somebody asks for this node's vote, or whether it would get it."""

    def count(self, raft: Raft, message: Message) -> None:
        """An answer has come to this candidate."""


def log_is_current(raft: Raft, message: Message) -> bool:
    """Is the candidate's log at least as new as ours (Raft §5.4.1)? Else it may lack what is committed."""
    return (message.log_term, message.index) >= (raft.log.last_term, raft.log.last_index)


def committed_context(raft: Raft) -> bytes:
    """Return what an answer to a candidate tells of what is committed: index and term of the last such entry."""
    if raft.config.as_reference:
        return b""
    index = raft.raftlog.commit_index
    return _COMMITTED.pack(index, raft.log.term(index))


def learn_committed(raft: Raft, message: Message) -> bool:
    """Take note of what the answer says is committed, if this log has it; return whether a membership change is in it.

    If the entry is the same, so is all before it (Log Matching, Raft §5.3).
    """
    if len(message.context) != _COMMITTED.size:
        return False
    index, term = _COMMITTED.unpack(message.context)
    log = raft.log
    if not raft.raftlog.commit_index < index <= log.last_index or log.term(index) != term:
        return False
    raft.raftlog.commit_to(index)
    return raft.conf_change_unapplied()


class VoteElection:
    """Raft's rule: a majority's votes, one each a term."""

    def tick(self, raft: Raft) -> None:
        """Nothing but the timeout."""

    def campaign(self, raft: Raft, *, transfer: bool) -> None:
        """Ask for votes, or first, with pre-vote, whether there would be any."""
        if raft.config.pre_vote and not transfer:
            raft.become_pre_candidate()
            self._request(raft, PRE_VOTE, raft.term + 1, b"")
        else:
            self._stand(raft, transfer=transfer)

    def _stand(self, raft: Raft, *, transfer: bool = False) -> None:
        raft.become_candidate(raft.term + 1)
        self._request(raft, VOTE, raft.term, TRANSFER if transfer else b"")

    def _request(self, raft: Raft, kind: MessageType, term: int, context: bytes) -> None:
        index, log_term = raft.log.last_index, raft.log.last_term
        for node in sorted(raft.tracker.membership.voters, key=node_order):
            if node == raft.id:
                # The own vote counts when it is on disk, like any other.
                raft.send_after_append(Message(VOTE_RESP if kind is VOTE else PRE_VOTE_RESP, node, term=term))
            else:
                raft.send(Message(kind, node, term=term, log_term=log_term, index=index, context=context))

    def ignores(self, raft: Raft, message: Message) -> bool:
        """With check-quorum a node that hears its leader lets nobody disturb it, unless that leader asked for it."""
        return (
            raft.config.check_quorum
            and raft.leader_id != NO_NODE
            and raft.election_elapsed < raft.config.election_ticks
            and message.context != TRANSFER
        )

    def answer(self, raft: Raft, message: Message) -> None:
        """Grant or refuse. Learners answer too: they may be voters by now and not know it yet.

        Who lost part of its log refuses: it cannot tell whether the candidate has what it once acknowledged (§5.4.1).
        """
        real = message.type is VOTE
        may_vote = (
            raft.vote == message.sender
            or (not raft.vote and not raft.leader_id)
            or (not real and message.term > raft.term)
        )
        response = VOTE_RESP if real else PRE_VOTE_RESP
        context = committed_context(raft)
        current = log_is_current(raft, message)
        raft.needed = raft.needed or not (current or raft.leader_id)
        if not may_vote or raft.abstains or not current:
            raft.send_after_append(Message(response, message.sender, term=raft.term, reject=True, context=context))
            return
        # A grant echoes the request's term: for a pre-vote it is not ours.
        raft.send_after_append(Message(response, message.sender, term=message.term, context=context))
        if real:
            raft.vote = message.sender
            raft.election_elapsed = 0

    def count(self, raft: Raft, message: Message) -> None:
        """Count an answer to the running election; those to an earlier one do not matter."""
        pre = raft.role is Role.PRE_CANDIDATE
        if message.type is not (PRE_VOTE_RESP if pre else VOTE_RESP):
            return
        if learn_committed(raft, message):
            # What is committed now may change who votes: apply it first, then try again.
            raft.become_follower(raft.term, NO_NODE)
            return
        votes = raft.tracker.votes
        votes.setdefault(message.sender, not message.reject)
        result = raft.tracker.election()
        if result is VoteResult.WON:
            if pre:
                self._stand(raft)
            elif raft.id in votes or raft.config.as_reference:
                raft.become_leader()
                leader.broadcast_append(raft)
        elif result is VoteResult.LOST:
            # Not the message's term: a pre-vote's lies in the future.
            raft.become_follower(raft.term, NO_NODE)
