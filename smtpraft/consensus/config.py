"""The settings of the core. All times are ticks; the driver decides how long a tick is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from smtpraft.types import NodeId

ELECTION_RAFT: Final = "raft"
ELECTION_LOWEST_ID: Final = "lowest-id"
MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Config:
    """What a node is told once. A limit of 0 bytes means none."""

    id: NodeId
    election_ticks: int = 15
    """A follower campaigns after one to two times this many ticks without a word from its leader."""
    heartbeat_ticks: int = 5
    priority: int = 100
    """Of this node in elections, 0 to 100: it waits longer for its leader by what is missing to 100, in percent of
    `election_ticks`. With 0 it campaigns only when its leader hands over to it, or when it had to refuse a candidate
    that lacks some of its log. A wish, no rule: who has the better log wins."""
    max_append_bytes: int = MIB
    """Entries in one APP message; one entry goes at least."""
    max_inflight_messages: int = 256
    max_inflight_bytes: int = 16 * MIB
    """Sent to one follower and not yet acknowledged."""
    max_uncommitted_bytes: int = 128 * MIB
    """Payload of the leader's proposals that are not applied yet; a proposal beyond it is dropped."""
    max_apply_bytes: int = 0
    """Entries handed out for applying and not yet acknowledged."""
    pre_vote: bool = True
    check_quorum: bool = True
    lease_reads: bool = False
    """Answer reads from the leader's lease, without a round of heartbeats (thesis §6.4.1). All nodes must agree on it.

    Whoever answered a leader's heartbeat votes for nobody for `election_ticks` from then on, and from its start on,
    whatever it hears of later terms; `RawNode.lease_held` says whether a majority's promises stand. As clocks are not
    synchronised but only assumed to run at about the same rate, the driver must leave a margin.
    """
    async_storage: bool = True
    step_down_on_removal: bool = True
    disable_conf_change_validation: bool = False
    election: str = ELECTION_RAFT
    as_reference: bool = False
    """Do message for message what the reference implementation does, for scenario files. Else four things differ:

    - A candidate does not lead before its own vote is on disk, even if others' votes suffice: after a crash it could
      win the same term again, with another log, and there would be two different entries of one index and term.
    - Answers to vote requests tell what is committed. Without that a membership change can be stuck for ever: the
      candidate does not know that its change is committed; those who know, and have the longer log, may not lead.
    - What one turn has for one peer is joined: appends that continue each other, acknowledgements that include others.
    - Lease reads look at a lease. The reference trusts any leader: one that was paused, one that has just handed over.
    """

    def __post_init__(self) -> None:
        """Check what can be checked.

        Raises:
            ValueError: the text names the setting.
        """
        if not self.id:
            raise ValueError("id must not be empty")
        if self.heartbeat_ticks < 1:
            raise ValueError(f"heartbeat_ticks={self.heartbeat_ticks}: must be at least 1")
        if self.election_ticks <= self.heartbeat_ticks:
            raise ValueError(f"election_ticks={self.election_ticks}: must be more than heartbeat_ticks")
        if not 0 <= self.priority <= 100:
            raise ValueError(f"priority={self.priority}: must be 0 to 100")
        if self.max_inflight_messages < 1:
            raise ValueError(f"max_inflight_messages={self.max_inflight_messages}: must be at least 1")
        if self.max_inflight_bytes and self.max_inflight_bytes < self.max_append_bytes:
            raise ValueError(f"max_inflight_bytes={self.max_inflight_bytes}: less than one message may hold")
        if self.lease_reads and not self.check_quorum:
            raise ValueError("lease_reads needs check_quorum: without it a leader's lease never ends")
        if self.lease_reads and self.election != ELECTION_RAFT:
            raise ValueError(f"lease_reads needs election {ELECTION_RAFT!r}: a lease is a promise not to vote")
        if self.election not in {ELECTION_RAFT, ELECTION_LOWEST_ID}:
            raise ValueError(f"election={self.election!r}: must be {ELECTION_RAFT!r} or {ELECTION_LOWEST_ID!r}")
