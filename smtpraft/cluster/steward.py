"""What a leader does about the members by itself: it writes the first ones into the log, and promotes learners."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from time import monotonic
from typing import Final

from smtpraft import fastlog
from smtpraft.cluster.addresses import split_address
from smtpraft.cluster.admission import Admission
from smtpraft.cluster.heartbeats import Heartbeats
from smtpraft.cluster.members import NO_DIRECTORY, Member, encode_found
from smtpraft.cluster.roster import Roster
from smtpraft.cluster.transport import Transport
from smtpraft.consensus import ChangeSingle, ChangeType, ConfChangeV2, ProgressState, ProposalDropped, RawNode, Role
from smtpraft.types import NodeId

log = logging.getLogger(__name__)

RETRY_S: Final = 1.0  # a proposal that was lost with a leadership is made again by whoever leads then
STEADY_S: Final = 1.0
"""So long a learner must have kept up before it gets a vote: longer than a burst that a disk's cache takes."""
LAG_ENTRIES_MAX: Final = 1000
LAG_BYTES_MAX: Final = 4 * 1024 * 1024


class Steward:
    """Loop thread only; times are seconds, monotonic.

    A learner has caught up when its disk has what the leader's log had one election timeout ago (so that to wait for it
    costs a commit no more than an election would, cf. thesis §4.2.1), lags by few entries and bytes, its disk does not
    hang, and all this has been so for `STEADY_S`.
    """

    def __init__(
        self,
        me: NodeId,
        core: RawNode,
        entries: fastlog.Log,
        roster: Roster,
        transport: Transport,
        heartbeats: Heartbeats,
        admission: Admission,
        *,
        election_timeout_s: float,
    ) -> None:
        self._me = me
        self._core = core
        self._entries = entries
        self._roster = roster
        self._transport = transport
        self._heartbeats = heartbeats
        self._admission = admission
        self._election_timeout_s = election_timeout_s
        self._propose_at = 0.0
        self._lengths: deque[tuple[float, int]] = deque()
        """When the log was how long, for the last election timeout."""
        self._steady_since: dict[NodeId, float] = {}

    def sweep(self, now: float) -> None:
        """Do what is due, as leader; called several times a second."""
        if self._core.role is not Role.LEADER:
            self._lengths.clear()
            self._steady_since.clear()
            return
        self._lengths.append((now, self._entries.last_index))
        while len(self._lengths) > 1 and self._lengths[1][0] <= now - self._election_timeout_s:
            self._lengths.popleft()
        learners = self._core.conf_state.learners
        for node in self._steady_since.keys() - set(learners):
            del self._steady_since[node]
        for node in learners:
            if self.lags(node, now):
                self._steady_since.pop(node, None)
            else:
                self._steady_since.setdefault(node, now)
        if now < self._propose_at:
            return
        if not self._roster.founded:
            self._propose_at = now + RETRY_S
            self._found()
        elif not self._core.conf_change_pending:
            self._promote(now)

    def waits_for(self, node: NodeId) -> str:
        """Return why the learner `node` has no vote yet; empty if nothing but its turn is missing."""
        now = monotonic()
        reason = self.lags(node, now)
        if not reason and now - self._steady_since.get(node, now) < STEADY_S:
            reason = f"it has kept up for less than {STEADY_S:g} s"
        return reason

    def lags(self, node: NodeId, now: float) -> str:
        """Return what a learner lacks for its vote, or a voter for leadership; empty if nothing."""
        row = self._core.progress(node)
        if row is None or not self._transport.connected(node):
            return "it cannot be reached"
        if row.state is not ProgressState.REPLICATE:
            return "its log does not follow the leader's yet"
        last = self._entries.last_index
        before = next((length for at, length in self._lengths if at <= now - self._election_timeout_s), None)
        lag_bytes = self._entries.size_bytes(row.match_index + 1, last) if row.match_index < last else 0
        if last - row.match_index > LAG_ENTRIES_MAX or lag_bytes > LAG_BYTES_MAX:
            return f"it lags by {last - row.match_index} entries, {lag_bytes} bytes"
        if before is None or row.match_index < before:
            return f"its disk is more than {self._election_timeout_s * 1000:.0f} ms behind"
        disk_lag_ms = self._heartbeats.disk_lag_ms.get(node)
        if disk_lag_ms is None or disk_lag_ms > self._election_timeout_s * 1000:
            return "its disk hangs" if disk_lag_ms is not None else "it has not answered a heartbeat yet"
        return ""

    def _promote(self, now: float) -> None:
        """Give a vote to the learner that waits longest for it."""
        due = [
            node
            for node, since in self._steady_since.items()
            if now - since >= STEADY_S and self._roster.members[node].promote
        ]
        if not due:
            return
        node = min(due, key=lambda node: self._steady_since[node])
        self._propose_at = now + RETRY_S
        log.info("promoting learner=%s match_index=%d", node, self._core.status().progress[node].match_index)
        with contextlib.suppress(ProposalDropped):
            self._core.propose_conf_change(ConfChangeV2((ChangeSingle(ChangeType.ADD_NODE, node),)))

    def _found(self) -> None:
        """Write the first members into the log, if the data directory of each is known by now."""
        members = []
        for node in self._core.conf_state.voters:
            known = self._roster.members[node]
            if node == self._me:
                host, port = known.host, known.port
                if address := self._transport.address:
                    host, port = split_address(address, "own address")
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
