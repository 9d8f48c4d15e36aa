"""How far one node's log is cut, and when, in virtual time: the steps of `cluster.compaction`, with crashes between."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpraft.consensus import Role

if TYPE_CHECKING:
    from smtpraft.simulator.process import Process


class Compaction:
    """What `cluster.compaction.Compaction` is, for one process; and what `cluster.retention` says."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._running = False

    def consider(self) -> None:
        """Start a step if one is due."""
        process = self._process
        plan = process.plan
        if not plan.has("snapshot") and any(map(plan.has, ("membership", "damage", "rot", "wipe"))):
            return  # Who joins, or lost all, needs the log from its beginning: on this day no snapshots travel.
        wanted = process.applier.applied_index - plan.keep_entries
        to_index = min(wanted, self.retain_index())
        if self._running or to_index - process.log.prev_index < plan.compact_every:
            return
        self._running = True
        process.after(process.host.apply_latency_us(), self._prepare, to_index)

    def retain_index(self) -> int:
        """Return the index up to which no node needs this log. Where snapshots travel, nobody is waited for."""
        process = self._process
        if process.plan.has("snapshot"):
            held = process.snapshots.hold_index()
            return process.appends.durable_index if held is None else min(held, process.appends.durable_index)
        if process.core.role is not Role.LEADER:
            return min(process.heartbeats.retain_index, process.appends.durable_index)
        return min(row.match_index for row in process.core.raft.tracker.progress.values())

    def _prepare(self, to_index: int) -> None:
        process = self._process
        process.machine.before_compaction(to_index)
        process.aim("crash-apply")
        safe = process.machine.checkpoint()
        process.host.checkpointed(process.machine, safe)
        process.after(process.host.apply_latency_us(), self._cut, min(to_index, safe))

    def _cut(self, to_index: int) -> None:
        process = self._process
        self._running = False
        if to_index <= process.log.prev_index:
            return
        term = process.log.term(to_index)
        process.core.compact(to_index)
        process.world.invariants.compacted(process.host, to_index, term)
        process.turn()
        process.aim("crash-apply")
        first = process.wal.first_index
        with process.host.aiming("crash-persist", operations=12, times=10, early=False):
            process.wal.compact(to_index)
        if process.wal.first_index > first:
            process.aim("crash-cut", times=10)
