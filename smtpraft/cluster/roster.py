"""The members as the loop knows them, and who must hear when they change: core, heartbeats, transport."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from smtpraft.cluster.heartbeats import Heartbeats
from smtpraft.cluster.members import Changed, Member
from smtpraft.cluster.transport import Transport
from smtpraft.consensus import ConfState, RawNode
from smtpraft.types import NodeId

log = logging.getLogger(__name__)


class Roster:
    """Loop thread only. `members` has this node too, if it is one."""

    def __init__(
        self,
        me: NodeId,
        members: Mapping[NodeId, Member],
        *,
        incarnation: int,
        founded: bool,
        removed: Mapping[tuple[NodeId, int], int],
        core: RawNode,
        heartbeats: Heartbeats,
        transport: Transport,
        on_joined: Callable[[], None],
        on_removed: Callable[[int], None],
    ) -> None:
        """`founded`: the log knows the members; else the founders' record or the configuration does.

        `on_joined`: the log says that this node, with this data directory, is a member. `on_removed`: that it is none
        any more since the entry at an index.
        """
        self._me = me
        self._incarnation = incarnation
        self._on_joined = on_joined
        self._on_removed = on_removed
        self._core = core
        self._heartbeats = heartbeats
        self._transport = transport
        self.members: Mapping[NodeId, Member] = {}
        self.founded = founded
        self._set(members, removed)

    @property
    def has_others(self) -> bool:
        """Does this node know of other members?"""
        return self.members.keys() != {self._me}

    @property
    def is_member(self) -> bool:
        """Is this node, with this data directory, a member as far as it has applied the log?"""
        own = self.members.get(self._me)
        return own is not None and own.incarnation in (0, self._incarnation) and bool(self._core.conf_state.voters)

    def begin(self, voters: ConfState) -> None:
        """From now on this node takes part; `voters` are the first ones, nobody if the log will say."""
        self._core.found(voters)
        self._heartbeats.set_voters(self._core.conf_state)
        if self.is_member:
            self._on_joined()
        self.campaign_if_alone()

    def campaign_if_alone(self) -> None:
        """There may be nobody to wait for."""
        if self._core.conf_state.voters == (self._me,):
            self._core.campaign()

    def change(self, changed: Changed) -> None:
        """The state machine has switched to other members; now, before that is reported as applied, all else does."""
        self.founded = True
        was_member = self.is_member
        if changed.change is None:
            self._core.found(changed.conf_state)
        else:
            state = self._core.apply_conf_change(changed.change)
            assert state == changed.conf_state, f"index {changed.index}: {state}, {changed.conf_state}"
        self._heartbeats.set_voters(self._core.conf_state)
        self._set(changed.members, changed.removed)
        state = changed.conf_state
        log.info(
            "members index=%d voters=%s learners=%s%s",
            changed.index,
            ",".join(state.voters),
            ",".join(state.learners) or "-",
            f" outgoing={','.join(state.voters_outgoing)}" if state.voters_outgoing else "",
        )
        if self.is_member and not was_member:
            self._on_joined()
        if removed_index := changed.removed.get((self._me, self._incarnation)):
            self._on_removed(removed_index)

    def _set(self, members: Mapping[NodeId, Member], removed: Mapping[tuple[NodeId, int], int]) -> None:
        self._transport.removed = removed
        for node in self.members.keys() - members.keys():
            self._transport.drop_peer(node)
        for node, member in members.items():
            if node != self._me:
                self._transport.set_peer(member.peer, member.incarnation)
        self.members = members
        own = members.get(self._me)
        # A directory that was lost was a member under this name: its vote is not ours to use.
        self._core.stranger = own is not None and own.incarnation not in (0, self._incarnation)
