"""What a leader does about the members by itself: it writes the first ones into the log."""

from __future__ import annotations

import contextlib
import logging
from typing import Final

from smtpraft.cluster.admission import Admission
from smtpraft.cluster.members import NO_DIRECTORY, Member, encode_found
from smtpraft.cluster.roster import Roster
from smtpraft.cluster.transport import Transport
from smtpraft.consensus import ProposalDropped, RawNode, Role
from smtpraft.types import NodeId

log = logging.getLogger(__name__)

RETRY_S: Final = 1.0  # a proposal that was lost with a leadership is made again by whoever leads then


class Steward:
    """Loop thread only; times are seconds, monotonic, given by the caller."""

    def __init__(self, me: NodeId, core: RawNode, roster: Roster, transport: Transport, admission: Admission) -> None:
        self._me = me
        self._core = core
        self._roster = roster
        self._transport = transport
        self._admission = admission
        self._propose_at = 0.0

    def sweep(self, now: float) -> None:
        """Do what is due, as leader; called several times a second."""
        if self._core.role is not Role.LEADER or now < self._propose_at:
            return
        if not self._roster.founded:
            self._propose_at = now + RETRY_S
            self._found()

    def _found(self) -> None:
        """Write the first members into the log, if the data directory of each is known by now."""
        members = []
        for node in self._core.conf_state.voters:
            known = self._roster.members[node]
            if node == self._me:
                host, port = known.host, known.port
                if address := self._transport.address:
                    host, _, port_text = address.rpartition(":")
                    host, port = host.strip("[]"), int(port_text)
                members.append(Member(node, self._admission.incarnation, host, port))
            elif self._admission.founders:
                members.append(Member(node, self._admission.founders[node], known.host, known.port))
            else:
                # Before, this cluster ran a release without incarnations. Once all nodes have one it is written down; a
                # node that has lost its disk meanwhile is replaced later.
                incarnation, takes_part = self._transport.directory_of(node)
                if not incarnation:
                    return
                members.append(Member(node, incarnation if takes_part else NO_DIRECTORY, known.host, known.port))
        with contextlib.suppress(ProposalDropped):
            self._core.propose([encode_found(members)])
