"""What rides on heartbeats besides Raft's own fields: node leases, contact times, the floor of compaction, digests.

Leader to follower: the question whose lease is granted and the session it is for, the index below which no node needs
the log any more, a digest point, and the leader's clock. Follower to leader: the next question, its own digest point,
the age of its disk's oldest unfinished write, and the leader's clock sent back, which dates the contact without
trusting the network.

Times are seconds, monotonic, given by the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from smtpraft import fastlog
from smtpraft.cluster.durations import ROUND_TRIP_BUCKETS_S, Durations
from smtpraft.cluster.lease import LeaseGranter, LeaseHolder
from smtpraft.consensus.messages import ConfState, Message, MessageType
from smtpraft.errors import Fatal
from smtpraft.types import NodeId

NO_ROOM_BIT: Final = 1 << 63
"""In the age of a disk's writes, milliseconds: no mail is taken there. To an older release it is a very slow disk."""

_ALWAYS_US: Final = 1 << 62  # this node has heard of itself just now, whenever that is


class Heartbeats:
    """The heartbeat side of one node."""

    def __init__(
        self,
        me: NodeId,
        voters: ConfState,
        *,
        lease_s: float,
        grant_window_s: float,
        digest_at: Callable[[int], int | None],
    ) -> None:
        self._me = me
        self._contact_at: dict[NodeId, float] = {}
        self._quorum_contact_s = 0.0
        self.set_voters(voters)
        self._grant_window_s = grant_window_s
        self._digest_at = digest_at
        self.holder = LeaseHolder(lease_s)
        self.granter: LeaseGranter | None = None
        self._sessions: dict[NodeId, int] = {}
        self.sessions_ended = 0
        """Sessions of other nodes that ended since the start: live nodes took over what those owned."""
        self.unsent = 0
        """Heartbeats that could not be sent."""
        self.round_trips: dict[NodeId, Durations] = {}
        """As leader: of each peer's heartbeats."""
        self.digest: tuple[int, int] = (0, 0)
        self.retain_index = 0
        """As follower: below this no node that the leader hears of needs the log."""
        self.disk_lag_ms: dict[NodeId, int] = {}
        self.short_of_room: set[NodeId] = set()
        self.applied: dict[NodeId, int] = {}
        self.round_trip_s: dict[NodeId, float] = {}
        self._sent_us: dict[NodeId, int] = {}
        self.leader_contact_at = 0.0

    @property
    def sessions(self) -> dict[NodeId, int]:
        """Every node's open session as far as this node has applied the log."""
        return self._sessions

    @sessions.setter
    def sessions(self, sessions: dict[NodeId, int]) -> None:
        gone = self._sessions.keys() - sessions.keys()
        self.sessions_ended += len(gone - {self._me})
        self._sessions = sessions

    def lead(self, now: float) -> None:
        """This node has become leader."""
        self.granter = LeaseGranter(self.holder.lease_s, self._grant_window_s, now)
        self._contact_at.clear()
        self._contact()
        self.applied.clear()
        self.disk_lag_ms.clear()
        self.short_of_room.clear()

    def follow(self) -> None:
        """This node leads no longer."""
        self.granter = None

    def set_voters(self, voters: ConfState) -> None:
        """Other members have the say from now on; of a joint membership, majorities of both sets."""
        self._voter_sets = [nodes for nodes in (voters.voters, voters.voters_outgoing) if nodes]
        self._contact()

    def quorum_contact_at(self, now: float) -> float:
        """As leader: when the newest heartbeat left that a majority, this node included, has answered; 0 if none."""
        return min(now, self._quorum_contact_s)

    def _contact(self) -> None:
        """Whom a majority heard from has changed; it is asked for many times until it changes again."""
        latest = [
            fastlog.quorum_index(
                [_ALWAYS_US if node == self._me else int(self._contact_at.get(node, 0.0) * 1e6) for node in nodes]
            )
            for nodes in self._voter_sets
        ]
        self._quorum_contact_s = min(latest, default=0) / 1e6

    def contact_at(self, node: NodeId) -> float:
        """As leader: when the newest heartbeat left that `node` has answered; 0 if none."""
        return self._contact_at.get(node, 0.0)

    def encode(self, message: Message, now: float, retain_index: int, may_grant: bool) -> bytes:
        """Return the frame of the core's HEARTBEAT `message` to one peer."""
        nonce = session = 0
        if may_grant and self.granter is not None:
            nonce = self.granter.grant(message.to, self.sessions.get(message.to), now, self.quorum_contact_at(now))
            session = self.sessions.get(message.to, 0)
        return fastlog.encode_heartbeat(
            message.term,
            message.commit,
            int.from_bytes(message.context, "big"),
            retain_index,
            nonce,
            session,
            *self.digest,
            int(now * 1e6),
        )

    def decode(self, sender: NodeId, head: bytes) -> tuple[Message, Callable[[float], None]]:
        """Return the core's message, and what to do (with the time) once the core has followed its sender."""
        term, commit, context, retain_index, nonce, session, digest_index, digest, sent_us = fastlog.decode_heartbeat(
            head
        )
        message = Message(
            MessageType.HEARTBEAT,
            to=self._me,
            sender=sender,
            term=term,
            commit=commit,
            context=context.to_bytes(8, "big") if context else b"",
        )

        def accepted(now: float) -> None:
            self.leader_contact_at = now
            # Sent back to whose clock it is: two leaders, of two terms, may be answered in one turn.
            self._sent_us[sender] = sent_us
            self.retain_index = retain_index
            if nonce:
                self.holder.granted(nonce, session)
            self._compare(sender, digest_index, digest)

        return message, accepted

    def encode_response(self, message: Message, now: float, applied_index: int, disk: int) -> bytes:
        """Return the frame of the core's HEARTBEAT_RESP `message`."""
        return fastlog.encode_heartbeat_response(
            message.term,
            int.from_bytes(message.context, "big"),
            self.holder.ask(now),
            applied_index,
            *self.digest,
            disk,
            self._sent_us.get(message.to, 0),
        )

    def decode_response(self, sender: NodeId, head: bytes, term: int, now: float) -> Message:
        """Return the core's message; note the contact if it is of our leadership in `term` (0: we do not lead)."""
        fields = fastlog.decode_heartbeat_response(head)
        answer_term, context, nonce, applied_index, _, _, disk, sent_us = fields
        if answer_term == term and self.granter is not None:
            self.granter.asked(sender, nonce)
            sent_at = sent_us / 1e6
            self.round_trip_s[sender] = now - sent_at
            if (trips := self.round_trips.get(sender)) is None:
                trips = self.round_trips[sender] = Durations(ROUND_TRIP_BUCKETS_S)
            trips.add(now - sent_at)
            self._contact_at[sender] = max(self._contact_at.get(sender, 0.0), min(sent_at, now))
            self._contact()
            self.applied[sender] = applied_index
            self.disk_lag_ms[sender] = disk & ~NO_ROOM_BIT
            (self.short_of_room.add if disk & NO_ROOM_BIT else self.short_of_room.discard)(sender)
        return Message(
            MessageType.HEARTBEAT_RESP,
            to=self._me,
            sender=sender,
            term=answer_term,
            context=context.to_bytes(8, "big") if context else b"",
        )

    def _compare(self, sender: NodeId, index: int, digest: int) -> None:
        """Nodes that applied the same log must be the same. One that differs stops before it answers anybody."""
        if not index:
            return
        mine = self._digest_at(index)
        if mine is not None and mine != digest:
            raise Fatal(
                f"state diverged: at index {index} this node's digest is {mine:016x}, leader {sender}'s {digest:016x}. "
                "It stops. Keep its data directory; do not start it with an empty one, it would forget its votes"
            )
