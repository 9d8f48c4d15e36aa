"""When a node whose disk lost something counts again: what it lost is on the disk, not only in memory."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from types import SimpleNamespace
from typing import Any

import pytest

from smtpraft.cluster.abstention import Abstention, where_to_begin
from smtpraft.errors import Fatal
from smtpraft.fastlog import Log
from smtpraft.storage import HardState


class Files(Executor):
    """Does what it is given, at once."""

    def submit(self, function: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments, **named))
        return future


def test_a_snapshot_heals_when_it_is_on_the_disk() -> None:
    """In memory it is in the place of the log at once. A crash now would leave the log that lost its end."""
    entries = Log()
    entries.restore(5471, 5)
    core = SimpleNamespace(commit_index=5471, abstains=False, leader_id="n2")
    done: list[bool] = []
    wal = SimpleNamespace(abstain_term=4, abstained=lambda: done.append(True))
    watcher = Abstention(wal, entries, core, Files(), lambda error: None)  # type: ignore[arg-type]
    watcher.watch(4603)
    assert not done
    watcher.watch(5471)
    assert done
    watcher.watch(5471)
    assert len(done) == 1


def test_a_machine_without_the_copies_it_had_made_is_no_more_whole_than_one_that_is_behind() -> None:
    """As far as before, but for what it copied before the log forgot it: alone, nobody has that."""
    entries = Log()
    entries.restore(560, 5)
    applier = SimpleNamespace(applied_index=560, copied_index=161, begin_at=lambda index: begun.append(index))
    wal = SimpleNamespace(abstain_term=0)
    begun: list[int] = []
    with pytest.raises(Fatal, match="entries up to 161, the log begins at 561"):
        where_to_begin(entries, wal, HardState(5), applier, alone=True)  # type: ignore[arg-type]
    restarted: list[tuple[int, int]] = []
    wal.abstain = lambda: HardState(5)
    wal.restart = lambda index, term, state, *, keep: restarted.append((index, term))
    wal.abstain_term = 5
    where_to_begin(entries, wal, HardState(5), applier, alone=False)  # type: ignore[arg-type]
    assert restarted == [(0, 0)]
    assert entries.prev_index == 0
    assert begun == [0]
    begun.clear()
    entries.restore(160, 5)
    where_to_begin(entries, wal, HardState(5, commit=160), applier, alone=False)  # type: ignore[arg-type]
    assert restarted == [(0, 0)]
    assert begun == [160]
