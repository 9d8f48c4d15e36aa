"""What the consensus core is told and what it answers: plain values, no behaviour.

What is made several times in every turn is a class without decorators, which the compiled half can make in a few
nanoseconds, or a NamedTuple: a frozen dataclass takes five times as long to make.

A message names entries by *range*; the bytes stay in the `fastlog.Log` that core and driver share, encoded once. On the
receiving side an APP carries the bytes as they came (`block`), and a PROP carries payloads that have no index yet.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, NamedTuple

from smtpraft.types import NO_NODE, NodeId


class MessageType(enum.IntEnum):
    """The message types of the reference implementation, with its numbers."""

    HUP = 0
    BEAT = 1
    PROP = 2
    APP = 3
    APP_RESP = 4
    VOTE = 5
    VOTE_RESP = 6
    SNAP = 7
    HEARTBEAT = 8
    HEARTBEAT_RESP = 9
    UNREACHABLE = 10
    SNAP_STATUS = 11
    CHECK_QUORUM = 12
    TRANSFER_LEADER = 13
    TIMEOUT_NOW = 14
    READ_INDEX = 15
    READ_INDEX_RESP = 16
    PRE_VOTE = 17
    PRE_VOTE_RESP = 18
    STORAGE_APPEND = 19
    STORAGE_APPEND_RESP = 20
    STORAGE_APPLY = 21
    STORAGE_APPLY_RESP = 22
    FORGET_LEADER = 23


APPEND_THREAD: Final = NodeId("<append>")
APPLY_THREAD: Final = NodeId("<apply>")
"""Pseudo ids of the driver's two workers; no real node id may contain these characters."""


class Role(enum.Enum):
    """What a node is in its term (Raft §5.1; thesis §9.6 for pre-candidates)."""

    FOLLOWER = "follower"
    CANDIDATE = "candidate"
    LEADER = "leader"
    PRE_CANDIDATE = "pre-candidate"


class HardState(NamedTuple):
    """What must be on disk before an answer leaves (Raft Figure 2)."""

    term: int = 0
    vote: NodeId = NO_NODE
    commit: int = 0


class SoftState(NamedTuple):
    """What need not be stored."""

    leader_id: NodeId
    role: Role


@dataclass(frozen=True, slots=True)
class ConfState:
    """A membership: `voters` and, while joint, `voters_outgoing` (Raft thesis §4.3). Members in `node_order`."""

    voters: tuple[NodeId, ...] = ()
    learners: tuple[NodeId, ...] = ()
    voters_outgoing: tuple[NodeId, ...] = ()
    learners_next: tuple[NodeId, ...] = ()
    auto_leave: bool = False


@dataclass(frozen=True, slots=True)
class SnapshotMeta:
    """Names a snapshot: the state after `index`, whose entry had `term`. `data` is opaque to consensus."""

    index: int
    term: int
    conf_state: ConfState
    data: bytes = b""


class EntryRange:
    """Entries `first` to `last` inclusive; both 0 = none. A value: it never changes."""

    __slots__ = ("first", "last")

    def __init__(self, first: int = 0, last: int = 0) -> None:
        self.first = first
        self.last = last

    def __bool__(self) -> bool:
        return self.last > 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EntryRange) and (self.first, self.last) == (other.first, other.last)

    def __hash__(self) -> int:
        return hash((self.first, self.last))

    def __repr__(self) -> str:
        return f"EntryRange(first={self.first}, last={self.last})"


def entry_range(first: int, last: int) -> EntryRange:
    """Return `EntryRange(first, last)`: where compiled, without packing arguments."""
    made = EntryRange.__new__(EntryRange)
    made.first = first
    made.last = last
    return made


NO_ENTRIES: Final = EntryRange()


class Message:
    """One struct for all types, as in the reference implementation; what a type does not use is zero.

    `context` is, of a HEARTBEAT and its answer: nothing, or the 8 bytes big endian of a read's number. Of a READ_INDEX
    and its answer: the reader's own. Of a VOTE: whether the leader asked for it. Of a VOTE_RESP, PRE_VOTE_RESP: what is
    committed; may be left out. (`sender` is who asks, also where another node passes it on.)

    `block`, of an APP as received: the encoded entries after `index`. The sender names them by `entries`.

    `payloads`, of a PROP: (kind, payload) of each proposal; they get index and term from the leader.
    """

    __slots__ = (
        "block",
        "commit",
        "context",
        "entries",
        "index",
        "log_term",
        "payloads",
        "reject",
        "reject_hint",
        "responses",
        "sender",
        "snapshot",
        "term",
        "to",
        "type",
        "vote",
    )

    def __init__(
        self,
        type: MessageType,
        to: NodeId = NO_NODE,
        sender: NodeId = NO_NODE,
        term: int = 0,
        log_term: int = 0,
        index: int = 0,
        commit: int = 0,
        vote: NodeId = NO_NODE,
        reject: bool = False,
        reject_hint: int = 0,
        context: bytes = b"",
        entries: EntryRange = NO_ENTRIES,
        block: bytes = b"",
        payloads: tuple[tuple[int, bytes], ...] = (),
        snapshot: SnapshotMeta | None = None,
        responses: tuple[Message, ...] = (),
    ) -> None:
        self.type = type
        self.to = to
        self.sender = sender
        self.term = term
        self.log_term = log_term
        self.index = index
        self.commit = commit
        self.vote = vote
        self.reject = reject
        self.reject_hint = reject_hint
        self.context = context
        self.entries = entries
        self.block = block
        self.payloads = payloads
        self.snapshot = snapshot
        self.responses = responses

    def _values(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in FIELDS}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Message) and self._values() == other._values()

    __hash__ = None  # type: ignore[assignment]  # It changes.

    def __repr__(self) -> str:
        """Name what is not zero."""
        shown = [f"{name}={value!r}" for name, value in self._values().items() if name != "type" and value]
        return f"Message({', '.join([self.type.name, *shown])})"


def new_message(type: MessageType, to: NodeId, sender: NodeId, term: int) -> Message:
    """Return `Message(type, to, sender, term)`: where compiled, without packing arguments."""
    made = Message.__new__(Message)
    made.type = type
    made.to = to
    made.sender = sender
    made.term = term
    made.log_term = 0
    made.index = 0
    made.commit = 0
    made.vote = NO_NODE
    made.reject = False
    made.reject_hint = 0
    made.context = b""
    made.entries = NO_ENTRIES
    made.block = b""
    made.payloads = ()
    made.snapshot = None
    made.responses = ()
    return made


FIELDS: Final = (
    "type",
    "to",
    "sender",
    "term",
    "log_term",
    "index",
    "commit",
    "vote",
    "reject",
    "reject_hint",
    "context",
    "entries",
    "block",
    "payloads",
    "snapshot",
    "responses",
)
"""Of a message, in the order in which it takes them."""


@dataclass(frozen=True, slots=True)
class ReadState:
    """A read asked for with `context` is safe once the state machine has applied `index` (Raft §8)."""

    index: int
    context: bytes


class Output:
    """What the driver does next. With asynchronous storage all of it is in `messages`. Only `RawNode.ready` makes it.

    `messages` may leave at once, in order; STORAGE_APPEND and STORAGE_APPLY go to the two workers, and their responses
    only after the write is durable, or applied: a vote is on disk before the answer leaves, or a restarted node could
    vote twice (Raft Figure 2).
    """

    __slots__ = (
        "committed",
        "entries",
        "hard_state",
        "messages",
        "must_sync",
        "read_states",
        "snapshot",
        "soft_state",
    )

    soft_state: SoftState | None
    hard_state: HardState | None
    read_states: tuple[ReadState, ...]
    entries: EntryRange
    snapshot: SnapshotMeta | None
    committed: EntryRange
    messages: tuple[Message, ...]
    must_sync: bool
