"""What rides on heartbeats: whose clock comes back to whom."""

from __future__ import annotations

from smtpraft import fastlog
from smtpraft.cluster.heartbeats import Heartbeats
from smtpraft.consensus.messages import ConfState, Message, MessageType
from smtpraft.types import NodeId

A, B, C = NodeId("node-1"), NodeId("node-2"), NodeId("node-3")


def side(me: NodeId) -> Heartbeats:
    return Heartbeats(me, ConfState((A, B, C)), lease_s=2.0, grant_window_s=0.3, digest_at=lambda index: None)


def sent(beats: Heartbeats, to: NodeId, term: int, now: float) -> bytes:
    """The head of a heartbeat: its frame without length, type, version and checksums."""
    frame = beats.encode(Message(MessageType.HEARTBEAT, to=to, sender=A, term=term), now, 0, may_grant=False)
    return head_of(frame)


def head_of(frame: bytes) -> bytes:
    ((_, head, _),) = fastlog.FrameDecoder(1 << 20).feed(frame)
    return head


def test_a_leader_gets_its_own_clock_back_whatever_another_leader_said_meanwhile() -> None:
    old, new, follower = side(A), side(B), side(C)
    old.lead(100.0)
    new.lead(5_000_000.0)  # it was booted long before
    _, accepted = follower.decode(A, sent(old, C, 1, 100.0))
    accepted(7.0)
    _, accepted = follower.decode(B, sent(new, C, 2, 5_000_000.0))
    accepted(7.0)
    answer = Message(MessageType.HEARTBEAT_RESP, to=A, sender=C, term=1)
    old.decode_response(C, head_of(follower.encode_response(answer, 7.0, 0, 0)), 1, 100.1)
    assert old.quorum_contact_at(100.1) == 100.0


def test_contact_is_never_in_the_future() -> None:
    leader = side(A)
    leader.lead(100.0)
    head = head_of(fastlog.encode_heartbeat_response(1, 0, 1, 0, 0, 0, 0, 10**12))
    leader.decode_response(C, head, 1, 100.1)
    assert leader.quorum_contact_at(100.1) == 100.1
