"""When a node whose disk lost something counts again: what it lost is on the disk, not only in memory."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from types import SimpleNamespace
from typing import Any

from smtpraft.cluster.abstention import Abstention
from smtpraft.fastlog import Log


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
