"""Membership changes: what may be asked for, its bytes in the log, and what it makes of a membership (thesis §4.3).

Payload of a membership entry, big endian; empty = leave the joint membership:
    version u8 = 1 | transition u8 | operations u16 | (type u8 | id length u8 | id)* | context
An entry of kind ENTRY_CONF_CHANGE holds exactly one operation and no transition: the older, simple form.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from smtpraft.consensus.errors import InvalidConfChange
from smtpraft.consensus.messages import ConfState
from smtpraft.fastlog import ENTRY_CONF_CHANGE, ENTRY_CONF_CHANGE_V2
from smtpraft.types import NO_NODE, NodeId, node_order

_HEADER: Final = struct.Struct(">BBH")
_VERSION: Final = 1


class Transition(enum.IntEnum):
    """How a change of several operations is carried out."""

    AUTO = 0
    """Jointly if there is more than one operation, then as JOINT_IMPLICIT."""
    JOINT_IMPLICIT = 1
    """Jointly; the leader leaves the joint membership by itself."""
    JOINT_EXPLICIT = 2
    """Jointly; somebody must propose the empty change."""


class ChangeType(enum.IntEnum):
    """What is done with a node."""

    ADD_NODE = 0
    REMOVE_NODE = 1
    UPDATE_NODE = 2
    """Changes no membership; what is new about the node is in the context."""
    ADD_LEARNER = 3


@dataclass(frozen=True, slots=True)
class ChangeSingle:
    """One operation. The node "" is skipped: somebody vetoed it."""

    type: ChangeType
    node: NodeId


@dataclass(frozen=True, slots=True)
class ConfChangeV2:
    """Operations carried out in one step; none at all means: leave the joint membership."""

    changes: tuple[ChangeSingle, ...] = ()
    transition: Transition = Transition.AUTO
    context: bytes = b""

    @property
    def leaves_joint(self) -> bool:
        """Does applying this leave a joint membership?"""
        return not self.changes and self.transition is Transition.AUTO

    @property
    def enters_joint(self) -> bool:
        """Does applying this enter one?"""
        return self.transition is not Transition.AUTO or len(self.changes) > 1

    @property
    def auto_leave(self) -> bool:
        """Will the leader leave the joint membership by itself?"""
        return self.transition is not Transition.JOINT_EXPLICIT


LEAVE_JOINT: Final = ConfChangeV2()


def encode_conf_change(change: ConfChangeV2) -> bytes:
    """Return the payload of a membership entry.

    Raises:
        InvalidConfChange: too many operations, or an id too long.
    """
    if change == LEAVE_JOINT:
        return b""
    parts = []
    for single in change.changes:
        node = single.node.encode()
        if len(node) > 255:
            raise InvalidConfChange(f"node id of {len(node)} bytes")
        parts.append(bytes((single.type, len(node))) + node)
    if len(parts) > 0xFFFF:
        raise InvalidConfChange(f"{len(parts)} operations")
    return _HEADER.pack(_VERSION, change.transition, len(parts)) + b"".join(parts) + change.context


def decode_conf_change(kind: int, payload: bytes) -> ConfChangeV2:
    """Return the change that a membership entry of this kind holds.

    Raises:
        InvalidConfChange: the bytes are none.
    """
    if kind not in {ENTRY_CONF_CHANGE, ENTRY_CONF_CHANGE_V2}:
        raise InvalidConfChange(f"an entry of kind {kind} is no membership change")
    change = _parse(payload) if payload else LEAVE_JOINT
    if kind == ENTRY_CONF_CHANGE and (len(change.changes) != 1 or change.transition is not Transition.AUTO):
        raise InvalidConfChange("the simple form holds one operation and no transition")
    return change


def _parse(payload: bytes) -> ConfChangeV2:
    try:
        version, transition, count = _HEADER.unpack_from(payload)
        if version != _VERSION:
            raise InvalidConfChange(f"version {version} of a membership change")
        changes = []
        at = _HEADER.size
        for _ in range(count):
            type_, length = payload[at], payload[at + 1]
            at += 2 + length
            if at > len(payload):
                raise InvalidConfChange("a membership change that is cut short")
            changes.append(ChangeSingle(ChangeType(type_), NodeId(payload[at - length : at].decode())))
        return ConfChangeV2(tuple(changes), Transition(transition), payload[at:])
    except InvalidConfChange:
        raise
    except (struct.error, IndexError, ValueError) as error:  # ValueError: no such type, or an id that is not UTF-8.
        raise InvalidConfChange(f"not a membership change: {error}") from error


@dataclass(frozen=True, slots=True)
class Membership:
    """Who votes and who listens.

    Invariant: `learners` is disjoint from both voter sets; `learners_next`, those that become learners when the joint
    membership is left, are outgoing voters; both it and `auto_leave` are there only while joint.
    """

    incoming: frozenset[NodeId] = frozenset()
    outgoing: frozenset[NodeId] = frozenset()
    learners: frozenset[NodeId] = frozenset()
    learners_next: frozenset[NodeId] = frozenset()
    auto_leave: bool = False

    @classmethod
    def restore(cls, state: ConfState) -> Membership:
        """Return what a snapshot or a data directory says.

        Raises:
            InvalidConfChange: no sequence of changes leads there.
        """
        membership = cls(
            frozenset(state.voters),
            frozenset(state.voters_outgoing),
            frozenset(state.learners),
            frozenset(state.learners_next),
            state.auto_leave,
        )
        membership._check()
        if not membership.incoming and membership.tracked:
            raise InvalidConfChange("members, but none of them votes")
        return membership

    @property
    def is_joint(self) -> bool:
        """Do two voter sets decide?"""
        return bool(self.outgoing)

    @property
    def voters(self) -> frozenset[NodeId]:
        """The voters of both sets."""
        return self.incoming | self.outgoing

    @property
    def tracked(self) -> frozenset[NodeId]:
        """Everybody who gets entries."""
        return self.incoming | self.outgoing | self.learners

    def conf_state(self) -> ConfState:
        """Return it as a snapshot holds it."""
        return ConfState(
            _ordered(self.incoming),
            _ordered(self.learners),
            _ordered(self.outgoing),
            _ordered(self.learners_next),
            self.auto_leave,
        )

    def applied(self, change: ConfChangeV2) -> tuple[Membership, frozenset[NodeId]]:
        """Return the membership after `change`, and the members that are new in it, or removed and added again.

        Raises:
            InvalidConfChange: it does not fit this membership.
        """
        if change.leaves_joint:
            return self.leave_joint(), frozenset()
        if change.enters_joint:
            return self.enter_joint(change.changes, auto_leave=change.auto_leave)
        return self.simple(change.changes)

    def simple(self, changes: Sequence[ChangeSingle]) -> tuple[Membership, frozenset[NodeId]]:
        """Apply operations that change at most one voter: any two majorities still overlap (thesis §4.1)."""
        if self.is_joint:
            raise InvalidConfChange("can't apply simple config change in joint config")
        draft = _Draft(self)
        draft.apply(changes)
        if len(self.incoming ^ draft.incoming) > 1:
            raise InvalidConfChange("more than one voter changed without entering joint config")
        return draft.result(auto_leave=False)

    def enter_joint(self, changes: Sequence[ChangeSingle], *, auto_leave: bool) -> tuple[Membership, frozenset[NodeId]]:
        """Apply any operations; until the joint membership is left, the old voters must agree as well."""
        if self.is_joint:
            raise InvalidConfChange("config is already joint")
        if not self.incoming:
            raise InvalidConfChange("can't make a zero-voter config joint")
        draft = _Draft(self)
        draft.outgoing = self.incoming
        draft.apply(changes)
        return draft.result(auto_leave=auto_leave)

    def leave_joint(self) -> Membership:
        """Let go of the old voters."""
        if not self.is_joint:
            raise InvalidConfChange("can't leave a non-joint config")
        membership = Membership(self.incoming, learners=self.learners | self.learners_next)
        membership._check()
        return membership

    def _check(self) -> None:
        if self.learners & self.voters:
            raise InvalidConfChange(f"both voter and learner: {sorted(self.learners & self.voters)}")
        if not self.learners_next <= self.outgoing:
            raise InvalidConfChange(f"not leaving, so not next: {sorted(self.learners_next - self.outgoing)}")
        if self.learners_next & self.incoming:
            raise InvalidConfChange(f"both voter and next learner: {sorted(self.learners_next & self.incoming)}")
        if self.auto_leave and not self.outgoing:
            raise InvalidConfChange("a membership that is not joint cannot be left")


class _Draft:
    """A membership while operations are applied to it, one after the other."""

    def __init__(self, base: Membership) -> None:
        self.incoming = set(base.incoming)
        self.outgoing = base.outgoing
        self.learners = set(base.learners)
        self.learners_next = set(base.learners_next)
        self.tracked = set(base.tracked)
        self.fresh: set[NodeId] = set()

    def apply(self, changes: Sequence[ChangeSingle]) -> None:
        for change in changes:
            if change.node == NO_NODE:
                continue
            match change.type:
                case ChangeType.ADD_NODE:
                    self._add_voter(change.node)
                case ChangeType.ADD_LEARNER:
                    self._add_learner(change.node)
                case ChangeType.REMOVE_NODE:
                    self._remove(change.node)
                case ChangeType.UPDATE_NODE:
                    pass
        if not self.incoming:
            raise InvalidConfChange("removed all voters")

    def _track(self, node: NodeId) -> None:
        self.tracked.add(node)
        self.fresh.add(node)

    def _add_voter(self, node: NodeId) -> None:
        if node not in self.tracked:
            self._track(node)
        self.learners.discard(node)
        self.learners_next.discard(node)
        self.incoming.add(node)

    def _add_learner(self, node: NodeId) -> None:
        if node in self.learners:
            return
        if node not in self.tracked:
            self._track(node)
        else:
            self._remove(node)
            self.tracked.add(node)  # What is known of it stays.
        if node in self.outgoing:
            # It still votes in the outgoing set, so it can be no learner yet.
            self.learners_next.add(node)
        else:
            self.learners.add(node)

    def _remove(self, node: NodeId) -> None:
        self.incoming.discard(node)
        self.learners.discard(node)
        self.learners_next.discard(node)
        if node not in self.outgoing:
            self.tracked.discard(node)

    def result(self, *, auto_leave: bool) -> tuple[Membership, frozenset[NodeId]]:
        membership = Membership(
            frozenset(self.incoming), self.outgoing, frozenset(self.learners), frozenset(self.learners_next), auto_leave
        )
        membership._check()
        assert membership.tracked == self.tracked, "somebody is tracked who is no member, or the other way round"
        return membership, frozenset(self.fresh & self.tracked)


def _ordered(nodes: frozenset[NodeId]) -> tuple[NodeId, ...]:
    return tuple(sorted(nodes, key=node_order))
