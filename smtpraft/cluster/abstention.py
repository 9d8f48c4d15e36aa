"""A node whose disk lost something that was synced: how it begins, and when it is whole again.

It follows its leader and gets entries or a snapshot like any member that is behind. It neither votes nor campaigns
until its log ends in a later term than the one in which it lost something (`Raft.abstains` says why that is enough),
and it does not forget that in a restart. Nobody has to do anything; if a majority is in this state nobody can, and
every node of it says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Executor, Future
from time import monotonic
from typing import Final

from smtpraft.cluster.applier import Applier
from smtpraft.cluster.machine import StateDamaged
from smtpraft.consensus import HardState, RawNode
from smtpraft.errors import Fatal
from smtpraft.fastlog import Log
from smtpraft.storage import HardState as StoredHardState
from smtpraft.storage import Wal
from smtpraft.types import NO_NODE, NodeId

log = logging.getLogger(__name__)

SAY_EVERY_S: Final = 10.0


def open_machine(applier: Applier, entries: Log, *, alone: bool) -> dict[NodeId, int]:
    """Open the state machine, if need be with nothing in place of what is damaged; return the open sessions.

    Raises:
        StateDamaged: nobody has what it would be built anew from.
    """
    try:
        _, sessions = applier.open()
    except StateDamaged as error:
        if alone and entries.prev_index:
            log.error(
                "the state machine is damaged, and what it was made of is compacted: restore a snapshot of it "
                "(`smtpraft snapshot restore`); nothing is changed"
            )
            raise
        log.error("the state machine is damaged, put aside, and built anew from the log, or the others: %s", error)
        error.put_aside()
        _, sessions = applier.open()
    return sessions


def put_log_aside(entries: Log, wal: Wal) -> StoredHardState:
    """Begin without a log, abstaining: all of it comes from the others. Return the new hard state."""
    state = StoredHardState(wal.abstain().term)
    wal.restart(0, 0, state, keep=True)
    entries.restore(0, 0)
    return state


def where_to_begin(entries: Log, wal: Wal, stored: StoredHardState, applier: Applier, *, alone: bool) -> HardState:
    """Return the hard state that the core begins with, and tell the applier from where on it will be given entries.

    A log that lost its end may be behind the state machine, and show entries that were replaced later. So then only
    what the log itself calls committed is; the machine is given the rest again, and takes what is new to it.

    Raises:
        Fatal: the state machine and the log are not of one run, and nobody can help.
    """
    applied, copied = applier.applied_index, applier.copied_index
    lost = applied > entries.last_index and not wal.abstain_term
    behind = applied < entries.prev_index
    # A disk that lost the last transactions of the machine: it may be as far as before, but for what those had copied.
    bare = copied is not None and copied < entries.prev_index and not behind
    if bare and alone:
        raise Fatal(
            f"the state machine has copies of what it needs of entries up to {copied}, the log begins at "
            f"{entries.first_index}: what was synced is gone. Restore a snapshot (`smtpraft snapshot restore`); "
            "nothing is changed"
        )
    if (behind or lost) and alone:
        raise Fatal(
            f"the state machine has applied index {applied}, the log holds {entries.first_index} to "
            f"{entries.last_index}: they are not of one run. "
            "Put both back from one copy of the data directory, or restore a snapshot (`smtpraft snapshot restore`); "
            "never start this node with an empty directory, it would vote anew on what it promised"
        )
    if lost:
        log.error(
            "the log ends at %d, the state machine has applied %d: what was synced is gone", entries.last_index, applied
        )
        stored = wal.abstain()
    if behind or bare:
        # The state machine was lost, and what it would need of the log is compacted: all of it comes from the leader,
        # as a snapshot, which no log that is whole would take. So the log goes too, and with it the vote for a time.
        begins, has = entries.prev_index, f"copies up to {copied} only" if bare else f"applied {applied}"
        log.error("the log begins after %d, the state machine has %s: it is damaged, or lost", begins, has)
        stored = put_log_aside(entries, wal)
    commit = stored.commit if wal.abstain_term else max(stored.commit, applied)
    commit = max(entries.prev_index, min(commit, entries.last_index))
    applier.begin_at(min(applied, commit))
    return HardState(stored.term, NodeId(stored.vote), commit)


class Abstention:
    """Watches over the abstention of one node, if it abstains. Loop thread."""

    def __init__(self, wal: Wal, entries: Log, core: RawNode, files: Executor, failed: Callable[[BaseException], None]):
        self._wal = wal
        self._entries = entries
        self._core = core
        self._files = files
        self._failed = failed
        self._through = wal.abstain_term
        self._say_at = monotonic() + SAY_EVERY_S

    def watch(self, durable_index: int) -> None:
        """Look whether what was lost is here again, committed and on the disk; now and then say if it is not."""
        if not self._through or durable_index < self._entries.prev_index:
            # A snapshot takes the place of the log at once in memory, and later on the disk: until then the log there
            # is the one that lost something, and after a crash this node would vote with it.
            return
        settled = min(self._core.commit_index, durable_index)
        if not self._core.abstains and self._entries.term(max(settled, self._entries.prev_index)) > self._through:
            log.warning("healed: what the disk had lost is back, this node votes again last_index=%d", settled)
            self._through = 0
            self._files.submit(self._wal.abstained).add_done_callback(self._done)
        elif monotonic() >= self._say_at:
            self._say_at = monotonic() + SAY_EVERY_S
            self._say()

    def _say(self) -> None:
        if self._core.leader_id != NO_NODE:
            log.warning(
                "abstains: this node's disk lost part of the log, which comes from leader=%s last_index=%d commit=%d",
                self._core.leader_id,
                self._entries.last_index,
                self._core.commit_index,
            )
            return
        log.error(
            "abstains: this node's disk lost part of the log, and no leader was elected without its vote for %.0f s. "
            "If a majority of the members lost theirs, the cluster stops here, for it cannot tell what it had "
            "acknowledged: keep every data directory, and bring back the members that are whole. `smtpraft status` "
            "shows who abstains",
            SAY_EVERY_S,
        )

    def _done(self, future: Future[None]) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            self._failed(error)
