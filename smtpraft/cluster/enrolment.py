"""This node among the others: who they are, whether it takes part, what it may be asked. Puts those parts together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from smtpraft import fastlog
from smtpraft.cluster.admission import Admission
from smtpraft.cluster.distance import Distances
from smtpraft.cluster.founding import FRAME_FOUNDING
from smtpraft.cluster.heartbeats import Heartbeats
from smtpraft.cluster.members import Changed, Member, Members
from smtpraft.cluster.requests import FRAMES as REQUEST_FRAMES
from smtpraft.cluster.requests import Handler, Requests
from smtpraft.cluster.roster import Roster
from smtpraft.cluster.settings import NodeOptions
from smtpraft.cluster.steward import Steward
from smtpraft.cluster.transport import Transport
from smtpraft.consensus import RawNode
from smtpraft.errors import Removed
from smtpraft.storage import Identity
from smtpraft.types import NodeId

log = logging.getLogger(__name__)


class Enrolment:
    """Loop thread only. `members` are those that `first_members` found; `applied` is what the log said of them."""

    def __init__(
        self,
        options: NodeOptions,
        identity: Identity,
        members: Mapping[NodeId, Member],
        applied: Members,
        *,
        core: RawNode,
        entries: fastlog.Log,
        heartbeats: Heartbeats,
        transport: Transport,
        carry_out: Handler,
        on_joined: Callable[[], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """`carry_out` answers questions of others. `on_joined` hears that this node is a member, `on_failure` that it
        is none any more (`Removed`).
        """
        me = options.node_id
        self._me = me
        self._on_joined = on_joined
        self._on_failure = on_failure
        self._identity = identity
        self._removed = False
        self.roster = Roster(
            me,
            members,
            incarnation=identity.facts.incarnation,
            founded=applied.founded,
            removed=dict(applied.removed),
            core=core,
            heartbeats=heartbeats,
            transport=transport,
            on_joined=on_joined,
            on_removed=self._was_removed,
        )
        self.admission = Admission(options, identity, transport, self.roster.begin)
        self.steward = Steward(
            me,
            core,
            entries,
            self.roster,
            transport,
            heartbeats,
            self.admission,
            election_timeout_s=options.election_timeout_ms / 1000,
        )
        self.distances = Distances(options.election_timeout_ms, transport.traffic)
        self.requests = Requests(transport, carry_out)
        transport.on_removed = self._was_removed

    def start(self) -> None:
        """Begin to take part, if this node waits for nobody."""
        if self.roster.is_member:
            self._on_joined()
        self.admission.start()
        self.roster.campaign_if_alone()

    def change(self, changed: Changed) -> None:
        """The state machine has switched to other members; see `Roster.change`."""
        self.roster.change(changed)
        self._identity.note_company(self.roster.has_others)

    def receive(self, peer: NodeId, kind: int, head: bytes) -> bool:
        """Take in what is ours of a frame; return whether it is a message of Raft that this node may look at.

        Raises:
            CorruptFrame: it cannot be what a node sent.
        """
        if kind == FRAME_FOUNDING:
            self.admission.hear(peer, head)
        elif self.admission.admitted_by(peer):
            if kind not in REQUEST_FRAMES:
                return True
            self.requests.receive(peer, kind, head)
        return False

    def sweep(self, now: float) -> None:
        """Do what is due by the clock; to be called several times a second."""
        self.steward.sweep(now)
        self.distances.sweep(now)

    def lost(self, peer: NodeId) -> None:
        """`peer` cannot be reached."""
        self.admission.lost(peer)
        self.requests.lost(peer)

    def _was_removed(self, index: int) -> None:
        """This node is no member any more: never to take part again."""
        if not self._removed:
            self._removed = True
            self.admission.removed()
            self._on_failure(Removed(f"{self._me} was removed from the cluster by the entry at index {index}"))
