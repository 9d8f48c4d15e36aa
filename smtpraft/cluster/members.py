"""Who the members are: voters and learners, the data directory and the address of each. Part of every node's state.

Deterministic: a function of the log alone, run on the apply thread and stored with the state machine in one transaction
(in the `notes`, see `sessions.py`). It begins with a FOUND entry, which the first leader writes; from then on only
membership entries change it. A change that does not fit is skipped by every node alike, and the core never hears of it.

A member is a node *and* its data directory: the directory's incarnation is part of who it is. One that lost its disk is
a stranger with a known name, until the old one is removed and the new one added.

In the log: the context of a membership entry, and what follows the first byte of a FOUND entry, is a list of
`(node, incarnation, host, port, promote)` as MessagePack; of the nodes that the change adds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from smtpraft.cluster import envelope
from smtpraft.cluster.addresses import Peer, format_address
from smtpraft.consensus import (
    ChangeType,
    ConfChangeV2,
    ConfState,
    InvalidConfChange,
    Membership,
    decode_conf_change,
)
from smtpraft.types import NodeId, node_order, parse_node_id

log = logging.getLogger(__name__)

REMOVED_KEPT: Final = 64
NO_DIRECTORY: Final = 1
"""The incarnation of a member whose disk was lost before directories had incarnations: no directory has it."""

Row = tuple[str, int, str, int, bool]


@dataclass(frozen=True, slots=True)
class Member:
    """One member. `incarnation` 0: of a release before directories had one, any will do."""

    id: NodeId
    incarnation: int
    host: str
    port: int
    promote: bool = True
    """As a learner: becomes a voter by itself once it has caught up."""

    @property
    def peer(self) -> Peer:
        """Its address."""
        return Peer(self.id, self.host, self.port)

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return format_address(self.host, self.port)


@dataclass(frozen=True, slots=True)
class Changed:
    """What an entry has made of the members, for the loop. `change` None: they were founded, or restored."""

    index: int
    change: ConfChangeV2 | None
    conf_state: ConfState
    members: dict[NodeId, Member]
    removed: dict[tuple[NodeId, int], int]


class _Stored(msgspec.Struct, array_like=True):
    index: int
    voters: list[str]
    outgoing: list[str]
    learners: list[str]
    learners_next: list[str]
    auto_leave: bool
    members: list[Row]
    removed: list[tuple[str, int, int]]


class Members:
    """The members as far as the log was applied. Nobody, until they were founded."""

    def __init__(self) -> None:
        self.index = 0
        """Of the entry that changed them last; 0: they were never founded."""
        self.by_id: dict[NodeId, Member] = {}
        self.removed: dict[tuple[NodeId, int], int] = {}
        """The last that were removed: node and incarnation, and the index of the entry that did so."""
        self._membership = Membership()
        self._packed: _Stored | None = None

    @property
    def founded(self) -> bool:
        """Does the log say who the members are? Before, the founders' own record does."""
        return self.index > 0

    @property
    def conf_state(self) -> ConfState:
        """Who votes and who listens."""
        return self._membership.conf_state()

    def found(self, index: int, payload: bytes) -> Changed | None:
        """Apply a FOUND entry; None if it comes too late to say anything.

        Raises:
            ValueError: no release writes that.
        """
        members = [_member(row) for row in _decode_rows(payload[1:])]
        if not members:
            raise ValueError("a cluster of nobody")
        if self.founded:
            return None
        self._membership = Membership.restore(ConfState(voters=tuple(member.id for member in members)))
        self.by_id = {member.id: member for member in members}
        self.index = index
        return self._changed(index, None)

    def change(self, index: int, kind: int, payload: bytes) -> Changed | None:
        """Apply a membership entry; None if it does not fit, and nothing has changed then."""
        try:
            change = decode_conf_change(kind, payload)
            added = {member.id: member for member in map(_member, _decode_rows(change.context))}
            if not self.founded:
                raise InvalidConfChange("there are no members yet")
            membership, _ = self._membership.applied(change)
            self._check(change, added)
        except ValueError as error:
            log.warning("membership change skipped index=%d reason=%s", index, error)
            return None
        self._membership = membership
        self.by_id |= added
        for node in [node for node in self.by_id if node not in membership.tracked]:
            gone = self.by_id.pop(node)
            self.removed.pop((node, gone.incarnation), None)
            self.removed[node, gone.incarnation] = index
        while len(self.removed) > REMOVED_KEPT:
            del self.removed[next(iter(self.removed))]
        self.index = index
        return self._changed(index, change)

    def restored(self) -> Changed:
        """Return these members as something new: a snapshot has brought them."""
        return self._changed(self.index, None)

    def _changed(self, index: int, change: ConfChangeV2 | None) -> Changed:
        return Changed(index, change, self.conf_state, dict(self.by_id), dict(self.removed))

    def _check(self, change: ConfChangeV2, added: dict[NodeId, Member]) -> None:
        """Each node that is new comes with its directory and address, and no other does."""
        for single in change.changes:
            known = self.by_id.get(single.node)
            if single.type in (ChangeType.ADD_NODE, ChangeType.ADD_LEARNER):
                new = added.get(single.node)
                if known is None and new is None:
                    raise InvalidConfChange(f"{single.node} is added without its directory and address")
                if known is not None and new is not None and known.incarnation != new.incarnation:
                    raise InvalidConfChange(f"{single.node} is a member with another directory")
                if new is not None and (single.node, new.incarnation) in self.removed:
                    raise InvalidConfChange(f"{single.node} was removed with this directory")
        if strangers := added.keys() - {single.node for single in change.changes}:
            raise InvalidConfChange(f"not added, but described: {sorted(strangers)}")

    def pack(self) -> object:
        """Return this state as plain values, the same on every node; not to be changed.

        Every transaction stores it, and it is seldom another than before.
        """
        if self._packed is None or self._packed.index != self.index:
            self._packed = self._pack()
        return self._packed

    def _pack(self) -> _Stored:
        state = self.conf_state
        return _Stored(
            self.index,
            list(state.voters),
            list(state.voters_outgoing),
            list(state.learners),
            list(state.learners_next),
            state.auto_leave,
            rows_of(sorted(self.by_id.values(), key=lambda member: node_order(member.id))),
            [(node, incarnation, index) for (node, incarnation), index in self.removed.items()],
        )

    @classmethod
    def unpack(cls, stored: object) -> Members:
        """Return what `pack` returned.

        Raises:
            ValueError: it is something else.
        """
        members = cls()
        try:
            found = msgspec.convert(stored, _Stored)
            members.by_id = {member.id: member for member in map(_member, found.members)}
        except (msgspec.ValidationError, ValueError) as error:
            raise ValueError(f"the cluster's members cannot be read: {error}") from error
        members.index = found.index
        members.removed = {(NodeId(node), incarnation): index for node, incarnation, index in found.removed}
        members._membership = Membership.restore(
            ConfState(
                voters=tuple(map(NodeId, found.voters)),
                voters_outgoing=tuple(map(NodeId, found.outgoing)),
                learners=tuple(map(NodeId, found.learners)),
                learners_next=tuple(map(NodeId, found.learners_next)),
                auto_leave=found.auto_leave,
            )
        )
        return members


def encode_found(members: Iterable[Member]) -> bytes:
    """Return the payload of a FOUND entry."""
    rows = rows_of(sorted(members, key=lambda member: node_order(member.id)))
    return bytes((envelope.FOUND,)) + msgspec.msgpack.encode(rows)


def encode_context(members: Iterable[Member]) -> bytes:
    """Return the context of a membership change that adds `members`; empty for none."""
    rows = rows_of(members)
    return msgspec.msgpack.encode(rows) if rows else b""


def rows_of(members: Iterable[Member]) -> list[Row]:
    """Return members as plain values."""
    return [(member.id, member.incarnation, member.host, member.port, member.promote) for member in members]


def _decode_rows(data: bytes) -> Sequence[Row]:
    if not data:
        return ()
    try:
        return msgspec.msgpack.decode(data, type=list[Row])
    except msgspec.DecodeError as error:
        raise ValueError(f"not a list of members: {error}") from error


def _member(row: Row) -> Member:
    node, incarnation, host, port, promote = row
    if not 0 <= incarnation < 1 << 63 or not 0 < port < 1 << 16:
        raise ValueError(f"not a member: {row}")
    return Member(parse_node_id(node), incarnation, host, port, promote)
