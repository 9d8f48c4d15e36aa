"""Who may speak through the log, and what was already said: the part of every node's state that makes a retry harmless.

Deterministic: a function of the log alone, run beside the state machine on the apply thread and stored with it in one
transaction (as `notes`). A session belongs to one node; it begins with an OPEN entry, whose index is its id, and ends
with a DOWN entry or with the node's next OPEN. A command counts only while its session is open and its seq is new.

The members (`members.py`) are kept beside the sessions, in the same notes; version 1 had none.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from smtpraft.cluster import envelope
from smtpraft.cluster.machine import Command, Item, NodeDown, NodeUp, Skipped
from smtpraft.cluster.members import Changed, Members
from smtpraft.errors import NewerFormat
from smtpraft.types import NodeId, node_order

log = logging.getLogger(__name__)

NOTES_VERSION: Final = 2


@dataclass(slots=True)
class Session:
    """One node's session. `done` are the seqs at or above `done_below` that were applied or cancelled."""

    id: int
    node: NodeId
    nonce: bytes
    done_below: int = 0
    done: set[int] = field(default_factory=set)


class _Notes(msgspec.Struct, array_like=True):
    version: int
    sessions: list[tuple[int, str, bytes, int, list[int]]]
    members: object = None


class Sessions:
    """The open sessions, by node and by id."""

    def __init__(self) -> None:
        self._by_id: dict[int, Session] = {}
        self._by_node: dict[NodeId, Session] = {}
        self.members = Members()
        self.changes: list[Changed] = []
        """What was done to the members, until somebody takes it."""

    def open_sessions(self) -> dict[NodeId, int]:
        """Return the id of each node's open session."""
        return {node: session.id for node, session in self._by_node.items()}

    def of_node(self, node: NodeId) -> Session | None:
        """Return a node's open session."""
        return self._by_node.get(node)

    def admit(self, index: int, term: int, stamp: int, crc: int, payload: bytes) -> Item:
        """Return what the state machine shall be given for a normal entry, and remember it.

        Anything that must not count, or that no version of ours wrote, is `Skipped`: the log cannot be argued with.
        """
        if not payload:
            return Skipped(index, term, stamp, crc)
        kind = payload[0]
        if kind == envelope.COMMAND and len(payload) >= envelope.COMMAND_HEADER_BYTES:
            _, session, seq, done_below = envelope.unpack_command(payload)
            data = payload[envelope.COMMAND_HEADER_BYTES :]
            return self.admit_command(index, term, stamp, crc, session, seq, done_below, data)
        try:
            if kind == envelope.OPEN:
                return self._open(index, term, stamp, crc, payload)
            if kind == envelope.DOWN:
                return self._down(index, term, stamp, crc, payload)
            if kind == envelope.CANCEL:
                self._cancel(payload)
            elif kind == envelope.FOUND:
                self._changed(self.members.found(index, payload))
        except ValueError:
            log.warning("skipped index=%d reason='an entry that no release of this format writes'", index)
        return Skipped(index, term, stamp, crc)

    def admit_command(
        self, index: int, term: int, stamp: int, crc: int, session_id: int, seq: int, done_below: int, data: bytes
    ) -> Command | Skipped:
        """As `admit`, of a command that was taken out of its envelope."""
        session = self._by_id.get(session_id)
        if session is None or seq < session.done_below or seq in session.done:
            return Skipped(index, term, stamp, crc)
        session.done.add(seq)
        if done_below > session.done_below:
            self._forget_below(session, done_below)
        return Command(index, term, stamp, crc, session.node, data)

    def change_members(self, index: int, kind: int, payload: bytes) -> None:
        """Apply a membership entry."""
        self._changed(self.members.change(index, kind, payload))

    def _changed(self, changed: Changed | None) -> None:
        if changed is not None:
            self.changes.append(changed)

    def encode(self) -> bytes:
        """Return the notes: all of this state, the same bytes on every node."""
        rows = [
            (session.id, str(session.node), session.nonce, session.done_below, sorted(session.done))
            for session in sorted(self._by_node.values(), key=lambda session: session.id)
        ]
        if not self.members.founded:
            return msgspec.msgpack.encode(_Notes(1, rows))
        return msgspec.msgpack.encode(_Notes(NOTES_VERSION, rows, self.members.pack()))

    @classmethod
    def decode(cls, notes: bytes) -> Sessions:
        """Return the sessions that `encode` wrote; empty notes are a fresh machine's.

        Raises:
            ValueError: the notes are damaged.
            NewerFormat: a newer release wrote them.
        """
        sessions = cls()
        if not notes:
            return sessions
        try:
            stored = msgspec.msgpack.decode(notes, type=_Notes)
        except msgspec.DecodeError as error:
            raise ValueError(f"the state machine's cluster notes cannot be read: {error}") from error
        if stored.version > NOTES_VERSION:
            raise NewerFormat(
                f"cluster notes of version {stored.version}; this release reads 1 to {NOTES_VERSION}: upgrade this node"
            )
        if stored.version > 1:
            sessions.members = Members.unpack(stored.members)
        for session_id, node, nonce, done_below, done in stored.sessions:
            session = Session(session_id, NodeId(node), nonce, done_below, set(done))
            sessions._by_id[session.id] = session
            sessions._by_node[session.node] = session
        return sessions

    def _cancel(self, payload: bytes) -> None:
        session_id, seq = envelope.decode_cancel(payload)
        session = self._by_id.get(session_id)
        if session is not None and seq >= session.done_below:
            session.done.add(seq)

    def _open(self, index: int, term: int, stamp: int, crc: int, payload: bytes) -> Item:
        nonce, node = envelope.decode_open(payload)
        old = self._by_node.get(node)
        if old is not None:
            if old.nonce == nonce:
                return Skipped(index, term, stamp, crc)
            del self._by_id[old.id]
        session = Session(index, node, nonce)
        self._by_id[index] = session
        self._by_node[node] = session
        return NodeUp(index, term, stamp, crc, node)

    def _down(self, index: int, term: int, stamp: int, crc: int, payload: bytes) -> Item:
        session_id, live = envelope.decode_down(payload)
        session = self._by_id.pop(session_id, None)
        if session is None:
            # The node came back under a new session before this entry: nothing of the new one may be taken away.
            return Skipped(index, term, stamp, crc)
        del self._by_node[session.node]
        heirs: Sequence[NodeId] = [node for node in live if node in self._by_node]
        if not heirs:
            heirs = list(self._by_node)
        return NodeDown(index, term, stamp, crc, session.node, tuple(sorted(heirs, key=node_order)))

    @staticmethod
    def _forget_below(session: Session, done_below: int) -> None:
        if len(session.done) < done_below - session.done_below:
            session.done = {seq for seq in session.done if seq >= done_below}
        else:
            session.done.difference_update(range(session.done_below, done_below))
        session.done_below = done_below
