"""Run seeds: each a world of its own, in a directory that is gone afterwards."""

from __future__ import annotations

import gc
import shutil
import tempfile
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from time import process_time
from typing import Final

import apsw

from smtpraft.simulator.plan import Plan
from smtpraft.simulator.timeline import S
from smtpraft.simulator.violation import Violation
from smtpraft.simulator.world import World

TRACE_SHOWN: Final = 60
VFS: Final = "unix-excl"
"""No other process looks into a simulated spool, so SQLite need not lock it, nor share an index of its log."""

_MEMORY: Final = Path("/dev/shm")  # noqa: S108 -- the files of a simulated day need no disk, and it would be slow


@dataclass(slots=True)
class Day:
    """What came of one seed."""

    plan: Plan
    rule: str = ""
    """The invariant that was broken; empty if none was."""
    text: str = ""
    simulated_us: int = 0
    real_s: float = 0.0
    events: int = 0
    checks: int = 0
    digest: int = 0
    commits: int = 0
    writes: int = 0
    acknowledged: int = 0
    reads: int = 0
    elections: int = 0
    hand_overs: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    trace: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Was a promise broken?"""
        return bool(self.rule)


def live(plan: Plan, directory: str | None = None) -> Day:
    """Live through one day and return what came of it; a violation is a result, not an error."""
    base = directory or (str(_MEMORY) if _MEMORY.is_dir() else None)
    work = tempfile.mkdtemp(prefix="smtpraft-simulate-", dir=base)
    day = Day(plan)
    begun = process_time()
    vfs = apsw.vfs_names()[0]
    apsw.set_default_vfs(VFS)
    world = World(plan, work)
    collects = gc.isenabled()
    gc.disable()  # A day is short, and most of what it makes stays until its end: looking for cycles finds little.
    try:
        try:
            world.run()
        except Violation as violation:
            day.rule, day.text = violation.rule, violation.text
            cause = violation.__cause__
            if cause is not None:
                day.text += "\n" + "".join(traceback.format_exception(cause)[-6:])
        except Exception as error:
            # An assertion of ours, or a bug of the simulator: either is worth a look.
            day.rule, day.text = "ERROR", "".join(traceback.format_exception(error))
    finally:
        world.close()
        apsw.set_default_vfs(vfs)
        if collects:
            gc.enable()
        shutil.rmtree(work, ignore_errors=True)
    day.real_s = process_time() - begun
    day.simulated_us = world.timeline.now
    day.events = world.timeline.events_done
    day.checks = world.invariants.checks
    day.digest = world.digest
    day.commits = world.invariants.commit_index
    day.writes = len(world.workload.writes)
    day.acknowledged = sum(write.outcome == "done" for write in world.workload.writes)
    day.reads = world.workload.reads_done
    day.elections = world.elections
    day.hand_overs = world.hand_overs
    day.faults = world.faults_seen
    if day.failed:
        day.trace = [
            f"{at / S:10.6f}  {node:<4} {kind:<8} {text}" for at, node, kind, text in list(world.trace)[-TRACE_SHOWN:]
        ]
    return day
