"""One core, driven by hand: what goes in, what comes out, and when its disk is done."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from smtpraft.consensus import (
    APPEND_THREAD,
    APPLY_THREAD,
    Config,
    ConfState,
    HardState,
    Message,
    MessageType,
    Output,
    RawNode,
    ReadState,
    Role,
    SnapshotMeta,
)
from smtpraft.fastlog import ENTRY_NORMAL, Log, encode_entries
from smtpraft.types import NodeId

N1, N2, N3, N4 = (NodeId(f"n{number}") for number in range(1, 5))


class Solo:
    """Node n1 of n1, n2, n3, unless told otherwise; the others are the test."""

    def __init__(
        self,
        *,
        voters: Sequence[NodeId] = (N1, N2, N3),
        learners: Sequence[NodeId] = (),
        hard_state: HardState | None = None,
        terms: Sequence[int] = (),
        applied: int = 0,
        snapshot: SnapshotMeta | None = None,
        log: Log | None = None,
        abstains_through: int = 0,
        **settings: object,
    ) -> None:
        """`terms` are the terms of the entries that the log has at the start."""
        self.log = log or Log()
        for index, term in enumerate(terms, 1):
            self.log.append_block(encode_entries(term, index, 0, ENTRY_NORMAL, [b"old"]))
        self.snapshot = snapshot
        config = Config(id=N1, **({"election_ticks": 10, "heartbeat_ticks": 1} | settings))  # type: ignore[arg-type]
        self.core = RawNode(
            config,
            self.log,
            ConfState(tuple(voters), tuple(learners)),
            hard_state or HardState(max(terms, default=0)),
            applied,
            Random(1),
            snapshot_provider=lambda: self.snapshot,
            abstains_through=abstains_through,
        )
        self.read_states: list[ReadState] = []
        self.writes: list[Message] = []
        self.applies: list[Message] = []

    # What comes out.

    def outputs(self) -> list[Message]:
        """Take what there is; return what goes over the network at once, and queue what the workers have to do."""
        sent: list[Message] = []
        while self.core.has_ready():
            output: Output = self.core.ready()
            self.read_states += output.read_states
            for message in output.messages:
                if message.to == APPEND_THREAD:
                    self.writes.append(message)
                elif message.to == APPLY_THREAD:
                    self.applies.append(message)
                else:
                    sent.append(message)
        return sent

    def store(self, count: int | None = None) -> list[Message]:
        """The disk is done with the oldest writes, or all; return what may leave now."""
        sent = self.outputs()
        done, self.writes = (self.writes, []) if count is None else (self.writes[:count], self.writes[count:])
        for write in done:
            for response in write.responses:
                if response.to == N1:
                    self.core.step(response)
                else:
                    sent.append(response)
        return sent + self.outputs()

    def apply(self) -> list[Message]:
        """The state machine is done with all it was given."""
        sent = self.outputs()
        done, self.applies = self.applies, []
        for work in done:
            for response in work.responses:
                self.core.step(response)
        return sent + self.outputs()

    def settle(self) -> list[Message]:
        """Store and apply until nothing is left; return what was sent."""
        sent = self.outputs()
        while self.writes or self.applies:
            sent += self.store()
            sent += self.apply()
        return sent

    # What goes in.

    def receive(self, kind: MessageType, sender: NodeId = N2, *, term: int | None = None, **fields: object) -> None:
        """A message arrives; in the current term unless told otherwise."""
        term = self.core.term if term is None else term
        self.core.step(Message(kind, N1, sender, term, **fields))  # type: ignore[arg-type]

    def append(
        self, first: int, terms: Sequence[int], *, prev_term: int, term: int, commit: int = 0, sender: NodeId = N2
    ) -> None:
        """An APP arrives with entries of these terms from `first` on."""
        block = b"".join(
            encode_entries(each, index, 0, ENTRY_NORMAL, [b"new"]) for index, each in enumerate(terms, first)
        )
        self.receive(
            MessageType.APP, sender, term=term, log_term=prev_term, index=first - 1, commit=commit, block=block
        )

    def ack(self, index: int, sender: NodeId = N2) -> None:
        """A follower has stored all up to `index`."""
        self.receive(MessageType.APP_RESP, sender, index=index)

    def lead(self) -> None:
        """Win an election with the vote of n2, and store and send what that brings."""
        self.core.campaign()
        self.settle()
        if self.core.role is Role.PRE_CANDIDATE:
            self.receive(MessageType.PRE_VOTE_RESP, N2, term=self.core.term + 1)
            self.settle()
        if self.core.role is Role.CANDIDATE:
            self.receive(MessageType.VOTE_RESP, N2)
            self.settle()
        assert self.core.role is Role.LEADER

    def lead_committed(self) -> None:
        """Lead, with the empty entry committed and everybody replicating."""
        self.lead()
        for progress in self.core.raft.tracker.peers:
            self.ack(self.log.last_index, progress.id)
        self.settle()
        assert self.core.commit_index == self.log.last_index

    def role(self) -> Role:
        """What the node is now."""
        return self.core.role

    def terms(self) -> list[int]:
        """The terms of all entries."""
        return [self.log.term(index) for index in range(self.log.first_index, self.log.last_index + 1)]


def of_type(messages: Sequence[Message], kind: MessageType, to: NodeId | None = None) -> list[Message]:
    """Return those of one type, to one node."""
    return [message for message in messages if message.type is kind and to in {None, message.to}]
