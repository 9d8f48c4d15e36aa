"""Machines that lose their data directory and come back as strangers; and the operator who has them replaced.

Between two nodes that is let through which the handshake lets through (`cluster.handshake`): who lost its directory is
another one, whatever its name. The operator does what `smtpraft member replace` does: the lost directory is let go, the
new one admitted as a learner, and that gets a vote once it has caught up (`cluster.changes`, `cluster.steward`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, cast

from smtpraft.cluster.addresses import Peer
from smtpraft.cluster.heartbeats import Heartbeats
from smtpraft.cluster.members import Member, Members, encode_context
from smtpraft.cluster.roster import Roster
from smtpraft.cluster.steward import LAG_ENTRIES_MAX
from smtpraft.cluster.transport import Transport
from smtpraft.consensus import ChangeSingle, ChangeType, ConfChangeV2, ProgressState, RawNode, Role
from smtpraft.simulator.timeline import MS
from smtpraft.types import NodeId

if TYPE_CHECKING:
    from smtpraft.simulator.host import Host
    from smtpraft.simulator.process import Process
    from smtpraft.simulator.world import World

LOOK_EVERY_US: Final = 200 * MS


class Directories:
    """Which data directory each peer must have: of `cluster.transport`, what the roster and the peers tell it."""

    def __init__(self, own: int) -> None:
        self._own = own
        self.removed: Mapping[tuple[NodeId, int], int] = {}
        self._known: dict[NodeId, int] = {}
        self._ahead: dict[NodeId, int] = {}  # of whom this node's log has yet to tell

    def set_peer(self, peer: Peer, incarnation: int) -> None:
        """Speak to `peer`, if it has that directory; 0: any."""
        if self._is_told(peer.id, incarnation):
            self._known[peer.id] = incarnation

    def drop_peer(self, node: NodeId) -> None:
        """Speak to it no more."""
        if self._is_told(node, 0):
            self._known.pop(node, None)

    def _is_told(self, node: NodeId, directory: int) -> bool:
        ahead = self._ahead.get(node, directory)
        if ahead != directory and (node, ahead) not in self.removed:
            return False
        self._ahead.pop(node, None)
        return True

    def of(self, node: NodeId) -> int:
        """Return the directory that it must have; 0: any, for nobody has told."""
        return self._known.get(node, 0)

    def lets_in(self, node: NodeId, theirs: int, ours: int) -> bool:
        """May this one speak to us, who takes us to have the directory `ours`? Who knows nobody yet listens to all."""
        if ours not in (0, self._own) or (node, theirs) in self.removed:
            return False
        if not self._known or self._known.get(node) in (0, theirs):
            return True
        if ours:  # a log told it of us, and that is longer than ours
            self._known[node] = self._ahead[node] = theirs
        return bool(ours)

    def roster(
        self, me: NodeId, known: Mapping[NodeId, Member], members: Members, core: RawNode, heartbeats: Heartbeats
    ) -> Roster:
        """Return the real roster of a node, which tells this. One that is removed goes on: it may be slow to hear."""
        return Roster(
            me,
            known,
            incarnation=self._own,
            founded=members.founded,
            removed=dict(members.removed),
            core=core,
            heartbeats=heartbeats,
            transport=cast(Transport, self),
            on_joined=lambda: None,
            on_removed=lambda index: None,
        )


class Wipes:
    """What is done to the disks of one cluster, and for them."""

    def __init__(self, world: World) -> None:
        self._world = world

    def wipe(self) -> None:
        """One node of a majority that is whole loses all it has. Not before the one before it votes again."""
        world = self._world
        leader = self._leader()
        if leader is None or world.plan.has("membership") or any(host.replaced for host in world.hosts.values()):
            return
        voters = leader.core.conf_state.voters
        hurt = sum(host.damaged or host.refused for host in world.hosts.values())
        if not leader.roster.founded or 2 * (hurt + 1) >= len(voters):
            return
        host = world.random.choice([world.hosts[node] for node in voters])
        if host.process is None or host.damaged:
            return
        host.wipe()
        world.timeline.after(world.random.randrange(2 * LOOK_EVERY_US), self._replace, host)

    def _leader(self) -> Process | None:
        leaders = [
            host.process
            for host in self._world.hosts.values()
            if host.process is not None and host.process.core.role is Role.LEADER
        ]
        return max(leaders, key=lambda process: process.core.term, default=None)

    def _replace(self, host: Host) -> None:
        """The operator looks, and does the next step."""
        leader = self._leader()
        if leader is not None and leader.host is not host and leader.roster.founded:
            if host.id in leader.core.conf_state.voters and leader.roster.members[host.id] == host.member:
                host.replaced = False
                return
            change = None if leader.core.conf_change_pending else self._step(leader, host)
            if change is not None:
                self._world.note(host.id, "replace", f"{change.changes[0].type.name} by {leader.id}")
                leader.host.run(leader, leader.change_members, change)
        self._world.timeline.after(LOOK_EVERY_US, self._replace, host)

    def _step(self, leader: Process, host: Host) -> ConfChangeV2 | None:
        known = leader.roster.members.get(host.id)
        if known is None:
            context = encode_context([host.member])
            return ConfChangeV2((ChangeSingle(ChangeType.ADD_LEARNER, host.id),), context=context)
        if known != host.member:
            rest = [node for node in leader.core.conf_state.voters if node != host.id]
            there = sum(self._is_there(leader, node) for node in rest)
            if there <= len(rest) // 2:
                return None  # It would stop the cluster at once.
            return ConfChangeV2((ChangeSingle(ChangeType.REMOVE_NODE, host.id),))
        row = leader.core.progress(host.id)
        behind = row is None or leader.log.last_index - row.match_index > LAG_ENTRIES_MAX
        if row is None or behind or row.state is not ProgressState.REPLICATE:
            return None
        return ConfChangeV2((ChangeSingle(ChangeType.ADD_NODE, host.id),))

    def _is_there(self, leader: Process, node: NodeId) -> bool:
        silent_s = leader.now_s() - leader.heartbeats.contact_at(node)
        return node == leader.id or silent_s <= leader.contact_window_s


def next_directory(member: Member) -> Member:
    """Return the node of `member` with an empty directory."""
    return Member(member.id, member.incarnation + 100, member.host, member.port)
