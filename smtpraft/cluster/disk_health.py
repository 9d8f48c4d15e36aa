"""Whether this node's disk is fit to lead, and to take on mail: it has room, and its writes finish.

    full        too little room is left, or none: no new mail; votes, reads and deliveries go on while they can
    read-only   as full, and it cannot vote either
    slow        a write hangs, or the last ones all took long; probed until several in a row have been quick

Followers may sync what this node cannot, so heartbeats alone would keep alive a leader that holds everybody up. So a
leader whose disk is not fit hands over to a follower whose disk is, within two election timeouts, and does not campaign
while it is not. If nobody else comes to lead, it does, unless its disk hangs: a slow leader is better than none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Executor, Future
from enum import Enum
from time import monotonic
from typing import Final

from smtpraft.cluster.applier import Applier
from smtpraft.cluster.heartbeats import NO_ROOM_BIT, Heartbeats
from smtpraft.cluster.settings import NodeOptions
from smtpraft.consensus import RawNode, Role
from smtpraft.storage import WalWriter
from smtpraft.storage.room import READ_ONLY, Ballast, Room, look
from smtpraft.types import NodeId

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 0.5
HANG_TIMEOUTS: Final = 1.5  # which leaves half an election timeout to hand over, of the two there are
SLOW_WRITES: Final = 3  # in a row, each longer than half an election timeout: one may be an accident
QUICK_WRITES: Final = 6
QUICK_FOR_S: Final = 1.5
REPORTED_S: Final = 2.0  # what was done longer ago says nothing of how a disk is now
PATIENCE_TIMEOUTS: Final = 15  # election timeouts without a leader, until a slow or full disk has to do


class DiskState(Enum):
    """What is the matter with a disk."""

    OK = "ok"
    SLOW = "slow"
    FULL = "full"
    READ_ONLY = "read-only"


class DiskHealth:
    """The disk of one node. Loop thread; `files` looks at the file system, which may hang."""

    def __init__(
        self,
        options: NodeOptions,
        writer: WalWriter,
        applier: Applier,
        core: RawNode,
        heartbeats: Heartbeats,
        files: Executor,
        connected: Callable[[NodeId], bool],
    ) -> None:
        self._options = options
        self._writer = writer
        self._applier = applier
        self._core = core
        self._heartbeats = heartbeats
        self._files = files
        self._connected = connected
        self._timeout_s = options.election_timeout_ms / 1000
        self._ballast = Ballast(options.data_dir)
        self._room: Room | None = None
        self._look: Future[Room] | None = None
        self._look_at = 0.0
        self._short = ""
        self._slow_since = 0.0
        self._led_at = monotonic()
        self._hand_over_at = 0.0
        self._probing = False

    # ---- facts ------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> DiskState:
        """What is the matter, the worst first."""
        if self._short:
            read_only = self._writer.read_only or (self._room is not None and self._room.read_only)
            return DiskState.READ_ONLY if read_only else DiskState.FULL
        return DiskState.SLOW if self._slow_since else DiskState.OK

    @property
    def short_of_room(self) -> bool:
        """Is there too little room to take on new mail?"""
        return bool(self._short)

    def report(self) -> int:
        """Return what a follower tells its leader: milliseconds that writes take, and whether it is short of room.

        The worst of the last ones, or nodes that share a disk, or a load, would hand over to one another in turn.
        """
        lag_s = max(self._writer.write_age_s(), self._writer.pace.worst_s(REPORTED_S))
        if self._slow_since:
            lag_s = max(lag_s, HANG_TIMEOUTS * self._timeout_s)  # it would not take over
        return round(lag_s * 1000) | (NO_ROOM_BIT if self._short else 0)

    # ---- judging ----------------------------------------------------------------------------------------------------

    def judge(self, now: float, *, stand_aside: bool = False) -> None:
        """Look at everything; to be called several times an election timeout. `stand_aside`: let others lead anyway."""
        self._judge_room(now)
        hangs = self._judge_pace(now)
        core = self._core
        if core.leader_id:
            self._led_at = now
        waited_in_vain = now - self._led_at > PATIENCE_TIMEOUTS * self._timeout_s
        core.barred = hangs or stand_aside or (self.state is not DiskState.OK and not waited_in_vain)
        if self.state is not DiskState.OK and core.role is Role.LEADER and now >= self._hand_over_at:
            self._hand_over_at = now + self._timeout_s
            self._hand_over()

    def _judge_room(self, now: float) -> None:
        if self._look is not None and self._look.done():
            if self._look.exception() is None:
                self._room = self._look.result()
            self._look = None
        if self._look is None and now >= self._look_at:
            self._look_at = now + LOOK_EVERY_S
            self._look = self._files.submit(self._look_and_trim)
        reserve_bytes = self._options.disk_reserve_bytes
        if self._short:
            reserve_bytes += reserve_bytes // 4  # or a node at the edge would change its mind with every message
        short = self._room.short_of(reserve_bytes) if self._room is not None else ""
        if self._writer.read_only:
            short = READ_ONLY  # not every file system says so when it is asked
        elif self._writer.waiting_for_room:
            short = short or "the log has no room for another segment"
        elif self._applier.waiting_for_room:
            short = short or "the state machine has no room"
        if bool(short) != bool(self._short) or (short == READ_ONLY) != (self._short == READ_ONLY):
            if short:
                log.warning("disk short of room, no new mail is taken reason=%r directory=%s", short, self._directory)
            else:
                log.warning("disk has room again directory=%s", self._directory)
        self._short = short

    @property
    def _directory(self) -> str:
        return self._options.data_dir

    def _look_and_trim(self) -> Room:
        room = look(self._directory)
        self._ballast.trim(room, self._options.disk_reserve_bytes)
        return room

    def _judge_pace(self, now: float) -> bool:
        """Return whether a write hangs."""
        pace, limit_s = self._writer.pace, self._timeout_s / 2
        # What waits for room is no slow write.
        age_s = 0.0 if self._writer.waiting_for_room else self._writer.write_age_s()
        hangs = age_s > HANG_TIMEOUTS * self._timeout_s
        if hangs or pace.last_at_least(SLOW_WRITES, limit_s):
            if not self._slow_since:
                log.warning("disk is slow writing_for_ms=%d usual_write_ms=%d", age_s * 1000, pace.usual_s * 1000)
            self._slow_since = now
            self._probe()
        elif self._slow_since:
            quick = pace.last_below(QUICK_WRITES, limit_s) and age_s < limit_s
            if not quick:
                self._slow_since = now
                self._probe()
            elif now - self._slow_since > QUICK_FOR_S:
                self._slow_since = 0.0
                log.warning("disk keeps up again usual_write_ms=%d", pace.usual_s * 1000)
        return hangs

    def _probe(self) -> None:
        """Have an empty write synced: a disk that nobody asks looks quick."""
        if self._probing or self._writer.write_age_s():
            return
        self._probing = True
        self._writer.submit([], 0, 0, None, True, self._probed)

    def _probed(self) -> None:
        self._probing = False

    def _hand_over(self) -> None:
        """Ask the most caught-up of the voters whose disks are well to lead.

        From a slow disk only to one that is clearly better, its worst beside our best: while a leader hands over it
        takes nothing on, and a new one would have the same load.
        """
        beats, core = self._heartbeats, self._core
        own_ms = max(self._writer.write_age_s(), self._writer.pace.least_s(SLOW_WRITES)) * 1000
        limit_ms = own_ms / 2 if self.state is DiskState.SLOW else self._timeout_s * 1000 * HANG_TIMEOUTS
        progress = core.status().progress
        healthy = [
            node
            for node, row in progress.items()
            if not row.is_learner
            and beats.disk_lag_ms.get(node, limit_ms) < limit_ms
            and node not in beats.short_of_room
            and self._connected(node)
        ]
        if healthy:
            to = max(healthy, key=lambda node: progress[node].match_index)
            log.warning("disk is not fit to lead state=%s, handing over to=%s", self.state.value, to)
            core.transfer_leader(to)
