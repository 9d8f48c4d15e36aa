"""The writer's thread: group commit, order, and what happens when the disk fails, fills up or hangs."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable
from time import monotonic

import pytest

from smtpraft.errors import Stopped
from smtpraft.fastlog import ENTRY_NORMAL, Log
from smtpraft.storage import HardState, Wal, WalFailed, WalWriter
from smtpraft.storage.simdisk import Operation, Outcome, SimulatedDisk
from smtpraft.storage.stats import WalStats

CLUSTER = b"0123456789abcdef"
WAIT_S = 10


class Bench:
    """A writer on a simulated disk whose syncs can be held up, and a loop's stand-in that counts what it is handed."""

    def __init__(self, disk: SimulatedDisk | None = None, *, promises: bool = False) -> None:
        self.disk = disk or SimulatedDisk()
        self.log = Log()
        self.wal, _ = Wal.open(
            self.disk,
            "/wal",
            cluster_id=CLUSTER,
            node_id="node-1",
            log=self.log,
            segment_bytes=1024 * 1024,
            background=False,
            promises="/wal" if promises else "",
        )
        self.done: list[int] = []
        self.deliveries = 0
        self.failures: list[BaseException] = []
        self.changed = threading.Condition()
        self.go_on = threading.Event()
        self.go_on.set()
        self.syncing = threading.Event()
        self.operations: list[str] = []
        self.disk.hook = self.hook
        self.writer = WalWriter(self.wal, deliver=self.deliver, on_failure=self.failures.append)

    def hook(self, operation: Operation) -> None:
        self.operations.append(operation.kind)
        if operation.kind == "sync":
            self.syncing.set()
            assert self.go_on.wait(WAIT_S)

    def deliver(self, callback: Callable[[], None]) -> None:
        with self.changed:
            self.deliveries += 1
            callback()
            self.changed.notify_all()

    def submit(self, *payloads: bytes, term: int = 1, sync: bool = True, hard_state: HardState | None = None) -> None:
        number = self.submitted = getattr(self, "submitted", 0) + 1
        spans = [memoryview(self.log.append(term, 0, ENTRY_NORMAL, payloads))] if payloads else []
        last = self.log.last_index if payloads else 0
        self.writer.submit(
            spans, last - len(payloads) + 1 if last else 0, last, hard_state, sync, lambda: self.done.append(number)
        )

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, WAIT_S)

    def recovered(self) -> Log:
        log = Log()
        Wal.open(
            self.disk.crash(Outcome.NOTHING),
            "/wal",
            cluster_id=CLUSTER,
            node_id="node-1",
            log=log,
            segment_bytes=1024 * 1024,
            background=False,
        )
        return log


def eventually(condition: Callable[[], bool]) -> bool:
    for _ in range(WAIT_S * 1000):
        if condition():
            return True
        threading.Event().wait(0.001)
    return False


def test_what_is_submitted_during_a_sync_goes_out_together() -> None:
    bench = Bench()
    bench.go_on.clear()
    bench.submit(b"first")
    assert bench.syncing.wait(WAIT_S)
    for number in range(10):
        bench.submit(b"later", b"too", hard_state=HardState(1, "", number))
    bench.submit(hard_state=HardState(2, "node-3", 12))
    assert bench.done == []
    bench.go_on.set()
    bench.wait(lambda: len(bench.done) == 12)
    assert bench.done == list(range(1, 13))
    assert bench.operations == ["write", "sync", "write", "sync"]
    assert bench.deliveries == 2
    assert bench.writer.stats.batches == 2
    assert bench.recovered().last_index == 21
    bench.writer.close()


def test_nothing_is_synced_when_nobody_asks() -> None:
    bench = Bench()
    bench.submit(b"a", sync=False)
    bench.submit(sync=False, hard_state=HardState(1, "", 1))
    bench.writer.close()
    assert bench.done == [1, 2]
    assert "sync" not in bench.operations


def test_one_that_asks_is_enough_for_all_before_it() -> None:
    bench = Bench()
    bench.go_on.clear()
    bench.submit(b"a")
    assert bench.syncing.wait(WAIT_S)
    bench.submit(b"b", sync=False)
    bench.submit(b"c", sync=True)
    bench.submit(b"d", sync=False)
    bench.go_on.set()
    bench.writer.close()
    assert bench.operations == ["write", "sync", "write", "sync"]
    assert bench.recovered().last_index == 4


def test_a_truncation_begins_a_batch() -> None:
    bench = Bench()
    bench.go_on.clear()
    bench.submit(b"a", b"b", b"c")
    assert bench.syncing.wait(WAIT_S)
    bench.submit(b"d")
    bench.log.truncate(2)
    bench.submit(b"B", term=2)
    bench.submit(b"C", term=2)
    bench.go_on.set()
    bench.writer.close()
    assert bench.writer.stats.batches == 3
    assert bench.recovered().entries(1, 3) == bench.log.entries(1, 3)


def test_a_batch_is_bounded() -> None:
    bench = Bench()
    bench.go_on.clear()
    bench.submit(b"a")
    assert bench.syncing.wait(WAIT_S)
    for _ in range(4):
        bench.submit(bytes(100_000))
    assert bench.writer.pending_bytes > 400_000
    bench.go_on.set()
    bench.writer.close()
    assert bench.writer.stats.batches == 3  # 256 KiB, a quarter of a segment, takes two
    assert bench.writer.pending_bytes == 0


def test_a_submission_of_nothing_keeps_its_place_and_costs_no_write() -> None:
    bench = Bench()
    bench.submit(b"a")
    bench.wait(lambda: bench.done == [1])
    bench.submit(sync=False)
    bench.wait(lambda: bench.done == [1, 2])
    assert bench.operations == ["write", "sync"]
    bench.writer.close()


def test_an_idle_writer_vouches_for_the_last_batch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtpraft.storage.writer.VOUCH_AFTER_S", 0.02)
    bench = Bench()
    bench.submit(b"a")
    assert eventually(lambda: bench.operations[-1:] == ["write"] and bench.wal.stats.batches == 2)
    threading.Event().wait(0.1)
    assert bench.operations == ["write", "sync", "write"]
    bench.submit(b"b")
    bench.wait(lambda: bench.done == [1, 2])
    bench.writer.close()
    assert bench.recovered().last_index == 2


def test_the_age_of_the_oldest_tells_of_a_disk_that_hangs() -> None:
    bench = Bench()
    assert bench.writer.write_age_s() == 0.0
    bench.go_on.clear()
    bench.submit(b"a")
    assert bench.syncing.wait(WAIT_S)
    first = bench.writer.write_age_s()
    bench.submit(b"b")
    assert bench.writer.write_age_s() >= first > 0.0
    bench.go_on.set()
    bench.wait(lambda: len(bench.done) == 2)
    assert bench.writer.write_age_s() == 0.0
    bench.writer.close()


def test_a_disk_that_finishes_one_write_after_another_does_not_hang() -> None:
    """However long the last of a hundred long messages waits for its turn."""
    bench = Bench()
    gates = [threading.Event(), threading.Event()]
    reached = [threading.Event(), threading.Event()]
    turns = iter(zip(gates, reached, strict=True))

    def hold(operation: Operation) -> None:
        if operation.kind == "sync":
            gate, here = next(turns)
            here.set()
            assert gate.wait(WAIT_S)

    bench.disk.hook = hold
    bench.submit(b"a")
    assert reached[0].wait(WAIT_S)
    bench.submit(b"b")
    threading.Event().wait(0.1)
    released_at = monotonic()
    gates[0].set()
    assert reached[1].wait(WAIT_S)
    age_s = bench.writer.write_age_s()
    assert age_s <= monotonic() - released_at
    gates[1].set()
    bench.writer.close()


def test_after_a_failure_nothing_is_answered_any_more() -> None:
    bench = Bench()
    bench.submit(b"a")
    bench.wait(lambda: bench.done == [1])

    def fail(operation: Operation) -> None:
        if operation.kind == "sync":
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    bench.disk.hook = fail
    bench.submit(b"b")
    bench.wait(lambda: bool(bench.failures))
    bench.disk.hook = None
    bench.submit(b"c")
    bench.writer.close()
    assert bench.done == [1]
    assert [type(failure) for failure in bench.failures] == [WalFailed]
    assert bench.writer.write_age_s() > 0.0


def test_a_submission_that_makes_no_sense_fails_the_writer() -> None:
    bench = Bench()
    bench.submit(hard_state=HardState(1, "", 5))
    bench.wait(lambda: bool(bench.failures))
    assert isinstance(bench.failures[0], ValueError)
    bench.writer.close()


def test_a_full_disk_holds_writing_up_until_there_is_room() -> None:
    bench = Bench(SimulatedDisk(capacity_bytes=1024 * 1024))
    for _ in range(3):
        bench.submit(bytes(300_000))
    bench.wait(lambda: bench.done == [1, 2, 3])
    bench.submit(bytes(300_000))
    assert eventually(lambda: bench.writer.waiting_for_room)
    assert bench.done == [1, 2, 3]
    bench.disk.capacity_bytes = None
    bench.wait(lambda: bench.done == [1, 2, 3, 4])
    assert eventually(lambda: not bench.writer.waiting_for_room)
    bench.writer.close()
    assert bench.failures == []


def test_a_full_disk_does_not_keep_the_writer_from_closing() -> None:
    bench = Bench(SimulatedDisk(capacity_bytes=1024 * 1024))
    bench.submit(bytes(2_000_000))
    bench.writer.close()
    assert bench.done == []
    assert bench.failures == []


def test_closing_writes_what_was_submitted_and_takes_nothing_more() -> None:
    bench = Bench()
    for _ in range(50):
        bench.submit(b"a")
    bench.writer.close()
    assert bench.done == list(range(1, 51))
    with pytest.raises(Stopped):
        bench.submit(b"b")


async def test_it_answers_on_the_loop() -> None:
    loop = asyncio.get_running_loop()
    wal, _ = Wal.open(
        SimulatedDisk(), "/wal", cluster_id=CLUSTER, node_id="node-1", log=Log(), segment_bytes=65536, background=False
    )
    writer = WalWriter(wal, deliver=loop.call_soon_threadsafe, on_failure=lambda error: None)
    log = Log()
    answers: list[asyncio.Future[str]] = []
    for index in range(1, 101):
        future: asyncio.Future[str] = loop.create_future()
        answers.append(future)
        span = memoryview(log.append(1, 0, ENTRY_NORMAL, [b"x" * index]))

        def done(future: asyncio.Future[str] = future) -> None:
            future.set_result(threading.current_thread().name)

        writer.submit([span], index, index, None, True, done)
    async with asyncio.timeout(WAIT_S):
        assert set(await asyncio.gather(*answers)) == {threading.current_thread().name}
    writer.close()
    assert wal.stats.syncs < 100
    assert sum(wal.stats.sync_counts) == wal.stats.syncs
    wal.close()


def test_batches_are_counted_by_their_entries() -> None:
    stats = WalStats()
    for entries in (1, 2, 3, 1024, 5000):
        stats.wrote(entries)
    assert stats.entries == 6030
    assert [count for count in stats.batch_counts if count] == [1, 1, 1, 1, 1]
    assert stats.batch_counts[-1] == 1, "more than the last bound"


def test_a_log_that_may_not_be_written_waits_and_vouches_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that is refused as a whole is no failed sync; nor is a promise that is refused before it is made."""
    monkeypatch.setattr("smtpraft.storage.writer.VOUCH_AFTER_S", 0.02)
    bench = Bench(promises=True)
    bench.submit(b"a")
    bench.wait(lambda: bench.done == [1])

    def refuse(operation: Operation) -> None:
        if operation.kind == "write":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    bench.disk.hook = refuse
    threading.Event().wait(0.1)  # it is idle: its mark is refused, again and again
    bench.submit(hard_state=HardState(2, "node-2", 1))
    assert eventually(lambda: bench.writer.read_only)
    assert bench.done == [1]
    bench.disk.hook = None
    bench.wait(lambda: bench.done == [1, 2])
    assert eventually(lambda: not bench.writer.read_only)
    bench.writer.close()
    assert bench.failures == []


@pytest.mark.parametrize("path", ["/wal/promises", ".wal"])
def test_a_sync_that_a_read_only_file_system_refuses_ends_the_writer(path: str) -> None:
    bench = Bench(promises=True)
    bench.submit(b"a")
    bench.wait(lambda: bench.done == [1])

    def refuse(operation: Operation) -> None:
        if operation.kind == "sync" and path in operation.path:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    bench.disk.hook = refuse
    bench.submit(hard_state=HardState(2, "node-2", 1))
    bench.wait(lambda: bool(bench.failures))
    bench.writer.close()
    assert bench.done == [1]
    assert [type(failure) for failure in bench.failures] == [WalFailed]
