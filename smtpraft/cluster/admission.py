"""Whether this node takes part, and how it comes to: with an empty data directory it neither votes nor campaigns.

A fresh node takes part once the cluster is founded with it (`founding.py`), or once a member asks for the very data
directory that it has: then the cluster has admitted it, and its log will say as what. Either is written to the data
directory before the first message of Raft is looked at. Until then the node's ports are open and its answers honest,
and it says every few seconds whom it waits for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Final

from smtpraft.cluster.founding import Founding
from smtpraft.cluster.members import Member, Members
from smtpraft.cluster.settings import NodeOptions
from smtpraft.cluster.transport import Transport
from smtpraft.consensus import ConfState
from smtpraft.storage import Facts, Identity, Standing
from smtpraft.types import NodeId, node_order

log = logging.getLogger(__name__)

WORD_INTERVAL_S: Final = 0.1
SAY_INTERVAL_S: Final = 3.0


def first_members(options: NodeOptions, facts: Facts, members: Members) -> tuple[ConfState, dict[NodeId, Member]]:
    """Return who votes as far as this node knows at its start, and the members that it knows of.

    The log knows best; before it says anything, the founders' record does; before there is one, the configuration does,
    if this node voted by it in a former release, or was made from a snapshot. A node that has not taken part knows of
    nobody who votes.
    """
    if members.founded:
        return members.conf_state, dict(members.by_id)
    host, port = options.listen
    configured = {
        peer.id: Member(peer.id, facts.founders.get(peer.id, 0), peer.host, peer.port) for peer in options.peers
    }
    configured[options.node_id] = Member(options.node_id, facts.incarnation, host, port)
    if facts.standing in (Standing.FOUNDER, Standing.UPGRADED, Standing.RESTORED):
        return ConfState(voters=tuple(sorted(configured, key=node_order))), configured
    return ConfState(), {} if options.join else configured


class Admission:
    """Loop thread only. `began` is called with the first voters, or with none, when this node begins to take part."""

    def __init__(
        self,
        options: NodeOptions,
        identity: Identity,
        transport: Transport,
        began: Callable[[ConfState], None],
    ) -> None:
        facts = identity.facts
        self._options = options
        self._identity = identity
        self._transport = transport
        self._began = began
        self._addresses = {peer.id: f"{peer.host}:{peer.port}" for peer in options.peers}
        founders = {NodeId(node): incarnation for node, incarnation in facts.founders.items()}
        self._founding = Founding(options.node_id, facts.incarnation, self._addresses, founders)
        self._next_word = 0.0
        self._say_at = monotonic() + SAY_INTERVAL_S / 3
        self.taking_part = facts.standing is not Standing.FRESH

    @property
    def incarnation(self) -> int:
        """Of this node's data directory."""
        return self._identity.facts.incarnation

    @property
    def founders(self) -> Mapping[NodeId, int]:
        """The founding set, if this node is a founder."""
        return self._founding.founders

    def start(self) -> None:
        """Alone, a node waits for nobody."""
        if not self.taking_part and not self._options.peers and not self._options.join:
            self._founding.found_alone()
            self._found()

    def tick(self) -> None:
        """While fresh: tell the others, and the log, that this node is waiting."""
        now = monotonic()
        if now >= self._next_word and not self._options.join:
            self._next_word = now + WORD_INTERVAL_S
            self._tell(*self._addresses)
        if now >= self._say_at:
            self._say_at = now + SAY_INTERVAL_S
            log.warning("%s", self.waits_for())

    def hear(self, peer: NodeId, head: bytes) -> None:
        """`peer` speaks of the founding.

        Raises:
            CorruptFrame: it does not.
        """
        if self._options.join:
            return
        answer = self._founding.hear(peer, head)
        if self._founding.founders and not self.taking_part:
            self._found()
            self._tell(*self._addresses)
        elif answer:
            self._tell(peer)

    def lost(self, peer: NodeId) -> None:
        """`peer` cannot be reached."""
        self._founding.lost(peer)

    def admitted_by(self, peer: NodeId) -> bool:
        """`peer` sends a message of Raft: return whether to take it. A member that knows this very directory may."""
        if not self.taking_part and self._transport.knows_us(peer):
            log.info("admitted by=%s incarnation=%016x", peer, self.incarnation)
            self._begin(Standing.ADMITTED, ConfState())
        return self.taking_part

    def removed(self) -> None:
        """The cluster has let this node go: it must never take part again with this data directory."""
        self._identity.record(Standing.REMOVED)

    def waits_for(self) -> str:
        """Return one line: whom this node waits for, why, and what to do."""
        if self._options.join:
            at = self._transport.address or "HOST:PORT"
            return (
                f"waiting to be admitted: run smtpraft member add {self._options.node_id}={at} on the cluster "
                f"(smtpraft member replace {self._options.node_id}, if it is a member that has lost its disk); this "
                "node takes no part until then"
            )
        missing = ", ".join(f"{node} ({self._reason(node)})" for node in self._founding.missing)
        return (
            f"waiting for {missing}: this data directory is new, and a new cluster begins when all of its nodes are "
            "there; if the cluster lives, and this node has lost its disk, run "
            f"smtpraft member replace {self._options.node_id} on it"
        )

    def _reason(self, node: NodeId) -> str:
        if self._founding.heard_of(node):
            return "it does not see all of them yet"
        return self._transport.stats(node).last_error or f"no word from {self._addresses[node]}"

    def _tell(self, *nodes: NodeId) -> None:
        word = self._founding.word()
        for node in nodes:
            self._transport.send_control(node, word)

    def _found(self) -> None:
        founders = self._founding.founders
        log.info("founded cluster=%s members=%s", self._options.cluster_id.hex(), ",".join(sorted(founders)))
        self._identity.record(Standing.FOUNDER, {str(node): incarnation for node, incarnation in founders.items()})
        for peer in self._options.peers:
            self._transport.set_peer(peer, founders[peer.id])
        self._begin(None, ConfState(voters=tuple(sorted(founders, key=node_order))))

    def _begin(self, standing: Standing | None, voters: ConfState) -> None:
        if standing is not None:
            self._identity.record(standing)
        self.taking_part = True
        self._transport.take_part()
        self._began(voters)
