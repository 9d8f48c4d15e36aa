"""The second election rule, for development and tests only: the lowest id that can be reached leads. No votes.

UNSAFE under partitions. A leader is whoever got no objection within a few ticks, and silence is taken for death: two
halves of a cut network each find a leader. Only one half has a majority and commits; but when the cut heals, the leader
of the other half may have the later term, and everybody follows the later term. Then entries that were acknowledged are
replaced by its own. (A node that knows them committed refuses and stops: LogConflict.) With votes this cannot happen: a
majority that elects has, in at least one of its members, everything a majority has committed (Raft §5.4.1).

What is kept of the promises, as far as that goes without votes:
- Terms grow, and no two nodes ever lead in the same one: a term belongs to the node whose rank among the voters it is,
  modulo their number, and it is on disk before its leader leads. (While a membership changes, ranks shift.)
- Nobody takes over with a log older than that of a node it can reach: it follows first, catches up, and then asks the
  leader to hand over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpraft.consensus import leader
from smtpraft.consensus.election import log_is_current
from smtpraft.consensus.messages import Message, MessageType, Role
from smtpraft.types import NO_NODE, node_order

if TYPE_CHECKING:
    from smtpraft.consensus.raft import Raft

PRE_VOTE, PRE_VOTE_RESP = MessageType.PRE_VOTE, MessageType.PRE_VOTE_RESP
VOTE_RESP = MessageType.VOTE_RESP


class LowestIdElection:
    """Ask everybody for objections (PRE_VOTE); without any, lead.

    An objection: I hear a leader; my log is newer; my id is lower and my log as new as yours, so I shall lead.
    """

    def __init__(self) -> None:
        self._ticks_left = 0
        """Until silence counts as consent."""
        self._takeover_ticks = 0

    def tick(self, raft: Raft) -> None:
        """End a round of questions; or, following a higher id with all that it has, ask it to hand over."""
        if raft.role is Role.PRE_CANDIDATE:
            self._ticks_left -= 1
            if self._ticks_left <= 0:
                self._stand(raft)
        elif raft.role is Role.FOLLOWER and raft.leader_id and node_order(raft.id) < node_order(raft.leader_id):
            self._takeover_ticks += 1
            # An entry of the leader's term here: the logs have met.
            if self._takeover_ticks >= raft.config.election_ticks and raft.log.last_term == raft.term:
                self._takeover_ticks = 0
                if raft.promotable:
                    raft.forward(Message(MessageType.TRANSFER_LEADER, sender=raft.id))
        else:
            self._takeover_ticks = 0

    def campaign(self, raft: Raft, *, transfer: bool) -> None:
        """Look for objections; after a hand-over there can be none."""
        if transfer:
            self._stand(raft)
            return
        raft.become_pre_candidate()
        self._ticks_left = max(1, raft.config.election_ticks // 2)
        for progress in raft.tracker.peers:
            if not progress.is_learner:
                raft.send(
                    Message(
                        PRE_VOTE,
                        progress.id,
                        term=raft.term + 1,
                        log_term=raft.log.last_term,
                        index=raft.log.last_index,
                    )
                )
        self._stand_if_all_agree(raft)

    def ignores(self, raft: Raft, message: Message) -> bool:
        """Nothing is ignored: silence would count as consent."""
        return False

    def answer(self, raft: Raft, message: Message) -> None:
        """Object, or agree. An objector who can lead and sees no leader campaigns itself."""
        if message.type is not PRE_VOTE:
            return  # A voting node in a cluster that does not vote: let it wait.
        hears_leader = raft.leader_id != NO_NODE and raft.election_elapsed < raft.config.election_ticks
        lower = raft.promotable and node_order(raft.id) < node_order(message.sender)
        as_new = (raft.log.last_term, raft.log.last_index) >= (message.log_term, message.index)
        object_ = hears_leader or not log_is_current(raft, message) or (lower and as_new)
        term = raft.term if object_ else message.term
        raft.send_after_append(Message(PRE_VOTE_RESP, message.sender, term=term, reject=object_))
        if object_ and not hears_leader and raft.role is Role.FOLLOWER:
            raft.campaign()

    def count(self, raft: Raft, message: Message) -> None:
        """One objection ends it, everybody's consent decides it; the own term's arrival on disk makes the leader."""
        if message.type is VOTE_RESP:
            if raft.role is Role.CANDIDATE and message.sender == raft.id and not message.reject:
                raft.become_leader()
                leader.broadcast_append(raft)
        elif raft.role is Role.PRE_CANDIDATE:
            if message.reject:
                raft.become_follower(raft.term, NO_NODE)
            else:
                raft.tracker.votes[message.sender] = True
                self._stand_if_all_agree(raft)

    def _stand_if_all_agree(self, raft: Raft) -> None:
        if raft.tracker.membership.voters <= raft.tracker.votes.keys() | {raft.id}:
            self._stand(raft)

    def _stand(self, raft: Raft) -> None:
        raft.become_candidate(_own_term_after(raft))
        raft.send_after_append(Message(VOTE_RESP, raft.id, term=raft.term))


def _own_term_after(raft: Raft) -> int:
    """Return the next term that is this node's: no other node leads in it."""
    voters = sorted(raft.tracker.membership.voters, key=node_order)
    rank = voters.index(raft.id)
    return raft.term + 1 + (rank - raft.term - 1) % len(voters)
