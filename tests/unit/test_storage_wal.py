"""The write-ahead log while it runs: writing, reading, compacting, and disks that fail or fill up."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable

import pytest

from smtpraft.errors import Stopped
from smtpraft.fastlog import ENTRY_NORMAL, Compacted, Log, Unavailable
from smtpraft.storage import HardState, Recovery, Wal, WalCorrupt, WalFailed, WalForeign, WalFull
from smtpraft.storage.simdisk import Operation, Outcome, PowerCut, SimulatedDisk

CLUSTER = b"0123456789abcdef"
SEGMENT_BYTES = 64 * 1024


def open_wal(
    disk: SimulatedDisk, log: Log | None = None, *, node_id: str = "node-1", cluster_id: bytes = CLUSTER
) -> tuple[Wal, Recovery]:
    return Wal.open(
        disk,
        "/data/wal",
        cluster_id=cluster_id,
        node_id=node_id,
        log=log if log is not None else Log(),
        segment_bytes=SEGMENT_BYTES,
        background=False,
    )


def append(wal: Wal, log: Log, *payloads: bytes, term: int = 1, sync: bool = True) -> None:
    """Append a batch to the log in memory and to that on disk."""
    block = log.append(term, 0, ENTRY_NORMAL, payloads)
    wal.write([block], log.last_index - len(payloads) + 1, log.last_index, HardState(term), sync)


def prepare(wal: Wal) -> None:
    while wal.prepare_spares():
        pass


def names(disk: SimulatedDisk) -> list[str]:
    return disk.list_directory("/data/wal")


def fail(kind: str, code: int, path: str = "") -> Callable[[Operation], None]:
    def hook(operation: Operation) -> None:
        if operation.kind == kind and path in operation.path:
            raise OSError(code, os.strerror(code), operation.path)

    return hook


# -------------------------------------------------------------------------------------------------- writing and reading


def test_what_was_written_is_there_after_a_power_loss() -> None:
    disk, log = SimulatedDisk(), Log()
    wal, recovery = open_wal(disk, log)
    assert recovery == Recovery(HardState(), 1, 0, 1, 0, 0, "")
    append(wal, log, b"a", b"b")
    append(wal, log, b"c", term=2)
    wal.write([], 0, 0, HardState(3, "node-2", 2))

    found = Log()
    _, recovery = open_wal(disk.crash(Outcome.NOTHING), found)
    assert recovery == Recovery(HardState(3, "node-2", 2), 1, 3, 1, 3, 0, "")
    assert found.entries(1, 3) == log.entries(1, 3)


def test_a_write_is_one_write_and_one_sync() -> None:
    disk, log = SimulatedDisk(), Log()
    wal, _ = open_wal(disk, log)
    seen: list[str] = []
    disk.hook = lambda operation: seen.append(operation.kind)
    append(wal, log, b"a", b"b")
    append(wal, log, b"c", sync=False)
    assert seen == ["write", "sync", "write"]


def test_an_unsynced_write_is_durable_with_the_next_synced_one() -> None:
    disk, log = SimulatedDisk(), Log()
    wal, _ = open_wal(disk, log)
    append(wal, log, b"a", sync=False)
    assert open_wal(disk.crash(Outcome.NOTHING))[1].last_index == 0
    wal.write([], 0, 0, HardState(1))
    assert open_wal(disk.crash(Outcome.NOTHING))[1].last_index == 1


def test_entries_from_the_first_index_on_are_replaced() -> None:
    disk, log = SimulatedDisk(), Log()
    wal, _ = open_wal(disk, log)
    append(wal, log, b"a", b"b", b"c")
    append(wal, log, b"d")
    log.truncate(2)
    append(wal, log, b"B", term=2)
    assert (wal.first_index, wal.last_index) == (1, 2)
    assert wal.read(1, 2, log) == b"".join(log.spans(1, 2))
    found = Log()
    open_wal(disk.crash(Outcome.NOTHING), found)
    assert found.entries(1, 2) == log.entries(1, 2)


@pytest.mark.parametrize(("first", "last"), [(2, 2), (1, 2), (0, 0)])
def test_spans_that_are_not_the_entries_are_refused(first: int, last: int) -> None:
    wal, _ = open_wal(SimulatedDisk())
    block = Log().append(1, 0, ENTRY_NORMAL, [b"a"])
    with pytest.raises(ValueError, match="do not hold"):
        wal.write([block], first, last)


def test_a_gap_is_refused() -> None:
    wal, _ = open_wal(SimulatedDisk())
    block = Log(1, 1).append(1, 0, ENTRY_NORMAL, [b"a"])
    with pytest.raises(ValueError, match="does not go on"):
        wal.write([block], 2, 2)


def test_a_term_that_goes_back_is_refused() -> None:
    log = Log()
    wal, _ = open_wal(SimulatedDisk(), log)
    append(wal, log, b"a", term=5)
    block = Log(1, 1).append(4, 0, ENTRY_NORMAL, [b"b"])
    with pytest.raises(ValueError, match="term 4 after 5"):
        wal.write([block], 2, 2)


def test_a_commit_index_beyond_the_log_is_refused() -> None:
    """Recovery would refuse it (PySyncObj PR 197: a commit index beyond the journal's end, and no start any more)."""
    wal, _ = open_wal(SimulatedDisk())
    with pytest.raises(ValueError, match="commit index 1"):
        wal.write([], 0, 0, HardState(1, "", 1))


def test_any_range_can_be_read_across_batches_segments_and_truncations() -> None:
    disk, log = SimulatedDisk(), Log()
    wal, _ = open_wal(disk, log)
    for number in range(1, 15):
        append(wal, log, *[bytes([number]) * (number * 1000)] * (number % 3 + 1), term=number)
        if number % 4 == 0:
            log.truncate(log.last_index - 1)
    append(wal, log, b"last", term=15)
    assert len([name for name in names(disk) if name.endswith(".wal")]) > 3
    for lo in range(1, log.last_index + 1):
        for hi in range(lo, log.last_index + 1):
            assert wal.read(lo, hi, log) == b"".join(log.spans(lo, hi))


def test_what_is_not_there_cannot_be_read() -> None:
    log = Log()
    wal, _ = open_wal(SimulatedDisk(), log)
    append(wal, log, b"a")
    with pytest.raises(Compacted):
        wal.read(0, 1, log)
    with pytest.raises(Unavailable):
        wal.read(1, 2, log)
    with pytest.raises(ValueError, match="no range"):
        wal.read(2, 1, log)


def test_an_entry_whose_replacement_is_not_written_yet_cannot_be_read() -> None:
    """The log in memory is ahead of the disk: what the disk has at that index is no longer in the log."""
    log = Log()
    wal, _ = open_wal(SimulatedDisk(), log)
    append(wal, log, b"a", b"b")
    log.truncate(2)
    log.append(2, 0, ENTRY_NORMAL, [b"B"])
    assert wal.read(1, 1, log)
    with pytest.raises(Unavailable, match="replaced"):
        wal.read(1, 2, log)


def test_damage_is_noticed_when_it_is_read() -> None:
    disk, log = SimulatedDisk(), Log()
    wal, _ = open_wal(disk, log)
    append(wal, log, b"a" * 100, b"b" * 100)
    path = f"/data/wal/{names(disk)[0]}"
    disk.flip(path, (4096 + 152 + 136 + 60) * 8)
    assert wal.read(1, 1, log)
    with pytest.raises(WalCorrupt) as caught:
        wal.read(1, 2, log)
    assert (caught.value.file, caught.value.lost_first, caught.value.lost_last) == (path, 1, 2)


# ------------------------------------------------------------------------------------------------------------- segments


def test_a_batch_larger_than_a_segment_gets_a_segment_of_its_own_size() -> None:
    disk, log = SimulatedDisk(), Log()
    wal, _ = open_wal(disk, log)
    append(wal, log, b"a")
    append(wal, log, b"b" * (3 * SEGMENT_BYTES))
    append(wal, log, b"c")
    sizes = [len(disk.contents(f"/data/wal/{name}")) for name in names(disk)]
    assert sizes[0] == SEGMENT_BYTES
    assert sizes[1] > 3 * SEGMENT_BYTES
    found = Log()
    open_wal(disk.crash(Outcome.NOTHING), found)
    assert found.entries(1, 3) == log.entries(1, 3)


def test_a_roll_takes_a_spare() -> None:
    disk, log = SimulatedDisk(), Log()
    wal, _ = open_wal(disk, log)
    prepare(wal)
    assert wal.spares == 2
    for _ in range(4):
        append(wal, log, bytes(40000))
    assert wal.spares == 0
    assert (wal.stats.rolls, wal.stats.rolls_without_spare) == (3, 1)


def test_compaction_recycles_what_lies_before_and_nothing_else() -> None:
    disk, log = SimulatedDisk(), Log()
    wal, _ = open_wal(disk, log)
    for _ in range(6):
        append(wal, log, bytes(40000))  # one a segment
    assert wal.compact(0) == 1
    assert wal.compact(3) == 4
    assert wal.spares == 3
    with pytest.raises(Compacted):
        wal.read(3, 4, log)
    assert wal.read(4, 6, log) == b"".join(log.spans(4, 6))
    assert wal.compact(3) == 4
    found = Log()
    _, recovery = open_wal(disk.crash(Outcome.NOTHING), found)
    assert (recovery.first_index, recovery.last_index) == (4, 6)
    assert (found.prev_index, found.prev_term) == (3, 1)
    assert found.entries(4, 6) == log.entries(4, 6)


def test_everything_but_the_segment_in_use_can_be_compacted() -> None:
    log = Log()
    wal, _ = open_wal(SimulatedDisk(), log)
    for _ in range(3):
        append(wal, log, bytes(40000))
    assert wal.compact(100) == 3
    append(wal, log, b"go on")
    assert wal.read(3, 4, log) == b"".join(log.spans(3, 4))


def test_a_segment_stays_while_a_later_truncation_reaches_back_before_the_next() -> None:
    disk, log = SimulatedDisk(), Log()
    wal, _ = open_wal(disk, log)
    append(wal, log, bytes(20000), bytes(20000))
    append(wal, log, bytes(40000))  # the second segment: entry 3
    log.truncate(2)
    append(wal, log, b"B", b"C", b"D", term=2)  # in the second segment, over entries of the first
    assert wal.compact(4) == 1
    append(wal, log, bytes(40000), term=2)  # the third segment: entry 5
    assert wal.compact(4) == 5


def test_recycled_segments_keep_nothing_of_what_they_held() -> None:
    disk, log = SimulatedDisk(), Log()
    wal, _ = open_wal(disk, log)
    for _ in range(12):
        append(wal, log, b"old" * 5000)
    wal.compact(12)
    for _ in range(12):
        append(wal, log, b"new" * 5000)
        found = Log()
        open_wal(disk.crash(Outcome.NOTHING), found)
        assert found.last_index == log.last_index
    assert all(not name.endswith(".tmp") for name in names(disk))


def test_no_more_spares_are_kept_than_are_useful() -> None:
    disk, log = SimulatedDisk(), Log()
    wal, _ = open_wal(disk, log)
    for _ in range(12):
        append(wal, log, bytes(40000))
    append(wal, log, bytes(2 * SEGMENT_BYTES))
    append(wal, log, b"in use")
    wal.compact(13)
    assert wal.spares == 4
    assert len(names(disk)) == 5
    assert all(len(disk.contents(f"/data/wal/{name}")) == SEGMENT_BYTES for name in names(disk))


def test_a_segment_is_not_recycled_while_it_is_read() -> None:
    log = Log()
    wal, _ = open_wal(SimulatedDisk(), log)
    for _ in range(3):
        append(wal, log, bytes(40000))
    reading, go_on = threading.Event(), threading.Event()
    closed: list[bool] = []
    segment = wal._segments[0]
    pread = segment.file.pread

    class Slow:
        path = segment.file.path

        def pread(self, length: int, offset: int) -> bytes:
            reading.set()
            assert go_on.wait(10)
            return pread(length, offset)

        def close(self) -> None:
            closed.append(go_on.is_set())

    segment.file = Slow()  # type: ignore[assignment]
    blocks: list[bytes] = []
    reader = threading.Thread(target=lambda: blocks.append(wal.read(1, 2, log)))
    reader.start()
    assert reading.wait(10)
    compaction = threading.Thread(target=wal.compact, args=(2,))
    compaction.start()
    while wal.first_index < 3:
        threading.Event().wait(0.001)
    append(wal, log, b"writes do not wait")
    go_on.set()
    reader.join()
    compaction.join()
    assert blocks == [b"".join(log.spans(1, 2))]
    assert wal.first_index == 3
    assert closed == [True]


# ------------------------------------------------------------------------------------------------------ failing disks


@pytest.mark.parametrize("kind", ["write", "sync"])
def test_a_failed_write_or_sync_is_the_end(kind: str) -> None:
    """PostgreSQL's fsync lesson: the second sync says yes, and the data is gone."""
    disk, log = SimulatedDisk(), Log()
    wal, _ = open_wal(disk, log)
    append(wal, log, b"a")
    disk.hook = fail(kind, errno.EIO)
    with pytest.raises(WalFailed, match="Input/output error"):
        append(wal, log, b"b")
    disk.hook = None
    before = disk.operations
    for _ in range(2):
        with pytest.raises(WalFailed):
            append(wal, log, b"c")
        with pytest.raises(WalFailed):
            wal.compact(1)
    wal.close()
    assert disk.operations == before, "it asked the disk again"
    assert wal.failure is not None


def test_recovery_after_a_failed_sync_does_not_trust_what_the_kernel_still_shows() -> None:
    disk, log = SimulatedDisk(), Log()
    wal, _ = open_wal(disk, log)
    append(wal, log, b"a")
    disk.hook = fail("sync", errno.EIO)
    with pytest.raises(WalFailed):
        append(wal, log, b"b")
    disk.hook = None
    # The process ends and is started again; the machine stays up.
    found = Log()
    wal, _ = open_wal(disk, found)
    assert found.last_index == 1
    append(wal, found, b"B")
    assert open_wal(disk.crash(Outcome.NOTHING))[1].last_index == 2


@pytest.mark.parametrize("kind", ["sync directory", "rename", "sync", "write"])
def test_a_failed_roll_is_the_end(kind: str) -> None:
    disk, log = SimulatedDisk(), Log()
    wal, _ = open_wal(disk, log)
    prepare(wal)
    append(wal, log, bytes(40000))
    disk.hook = fail(kind, errno.EIO)
    with pytest.raises(WalFailed):
        append(wal, log, bytes(40000))
    assert open_wal(disk.crash(Outcome.ALL))[1].last_index in (1, 2)
    assert open_wal(disk.crash(Outcome.NOTHING))[1].last_index == 1


def test_a_process_that_dies_leaves_what_the_kernel_has_and_recovery_makes_it_durable() -> None:
    """kill -9 is no power loss: what was not synced is still there, until the power goes too."""
    disk, log = SimulatedDisk(), Log()
    wal, _ = open_wal(disk, log)
    append(wal, log, b"a")
    append(wal, log, b"b", sync=False)
    found = Log()
    _, recovery = open_wal(disk, found)
    assert recovery.last_index == 2
    assert open_wal(disk.crash(Outcome.NOTHING))[1].last_index == 2


def test_a_full_disk_stops_writing_only_when_the_spares_are_used_up_and_goes_on_when_there_is_room() -> None:
    disk, log = SimulatedDisk(capacity_bytes=3 * SEGMENT_BYTES), Log()
    wal, _ = open_wal(disk, log)
    prepare(wal)
    assert (wal.spares, wal.full) == (2, False)
    append(wal, log, bytes(40000))
    append(wal, log, bytes(40000))
    assert not wal.prepare_spares()
    assert (wal.spares, wal.full) == (1, True)
    append(wal, log, bytes(40000))
    append(wal, log, b"small things still fit")
    block = log.append(1, 0, ENTRY_NORMAL, [bytes(40000)])
    for _ in range(2):
        with pytest.raises(WalFull):
            wal.write([block], 5, 5)
    assert all(not name.endswith(".tmp") for name in names(disk))

    assert wal.compact(1) == 2  # only this makes room, so it must not need any
    assert not wal.full
    wal.write([block], 5, 5)
    found = Log()
    open_wal(disk.crash(Outcome.NOTHING), found)
    assert found.entries(2, 5) == log.entries(2, 5)


def test_compaction_works_when_the_segment_in_use_is_full_and_so_is_the_disk() -> None:
    disk, log = SimulatedDisk(capacity_bytes=2 * SEGMENT_BYTES), Log()
    wal, _ = open_wal(disk, log)
    while wal.last_index < 28:
        append(wal, log, b"a" * 3000)
    with pytest.raises(WalFull):
        append(wal, log, b"a" * 3000)
    assert wal.compact(14) == 15
    log.truncate(29)
    append(wal, log, b"b" * 3000)


def test_a_compaction_that_has_no_room_for_its_mark_is_put_off() -> None:
    disk, log = SimulatedDisk(), Log()
    wal, _ = open_wal(disk, log)
    for _ in range(3):
        append(wal, log, bytes(40000))
    disk.capacity_bytes = 0
    wal._segments[-1].end_offset = SEGMENT_BYTES  # as after a mark that took the reserve
    assert wal.compact(2) == 1
    disk.capacity_bytes = None
    assert wal.compact(2) == 3


def test_a_full_disk_at_the_first_start_says_so_and_leaves_nothing() -> None:
    disk = SimulatedDisk(capacity_bytes=100)
    with pytest.raises(OSError, match="No space left"):
        open_wal(disk)
    assert names(disk) == []
    disk.capacity_bytes = None
    open_wal(disk)


def test_a_closed_log_does_nothing_more() -> None:
    disk, log = SimulatedDisk(), Log()
    wal, _ = open_wal(disk, log)
    append(wal, log, b"a", sync=False)
    wal.close()
    wal.close()
    assert disk.open_files == 0
    with pytest.raises(Stopped):
        wal.write([], 0, 0, HardState(2))
    with pytest.raises(Stopped):
        wal.read(1, 1, log)
    with pytest.raises(Stopped):
        wal.compact(1)
    assert open_wal(disk.crash(Outcome.NOTHING))[1].last_index == 1


# ---------------------------------------------------------------------------------------------------------------- whose


@pytest.mark.parametrize(("node_id", "cluster_id"), [("node-2", CLUSTER), ("node-1", bytes(16))])
def test_the_log_of_another_is_refused(node_id: str, cluster_id: bytes) -> None:
    disk = SimulatedDisk()
    open_wal(disk)[0].close()
    with pytest.raises(WalForeign, match="node 'node-1' of cluster 3031"):
        open_wal(disk, node_id=node_id, cluster_id=cluster_id)
    assert disk.open_files == 0


@pytest.mark.parametrize(("cluster_id", "segment_bytes"), [(b"short", 65536), (CLUSTER, 8192), (CLUSTER, 65537)])
def test_settings_out_of_range_are_refused(cluster_id: bytes, segment_bytes: int) -> None:
    with pytest.raises(ValueError, match="bytes"):
        Wal.open(
            SimulatedDisk(), "/wal", cluster_id=cluster_id, node_id="node-1", log=Log(), segment_bytes=segment_bytes
        )


def test_another_segment_size_replaces_the_spares() -> None:
    disk, log = SimulatedDisk(), Log()
    wal, _ = open_wal(disk, log)
    prepare(wal)
    append(wal, log, b"a")
    wal.close()
    found = Log()
    wal, _ = Wal.open(
        disk, "/data/wal", cluster_id=CLUSTER, node_id="node-1", log=found, segment_bytes=131072, background=False
    )
    assert wal.spares == 0
    prepare(wal)
    for _ in range(3):
        append(wal, found, bytes(100000))
    again = Log()
    open_wal(disk, again)
    assert again.last_index == 4


def test_bytes_beyond_the_cache_are_read_from_the_disk() -> None:
    disk, log = SimulatedDisk(), Log()
    wal, _ = open_wal(disk, log)
    for _ in range(8):
        append(wal, log, bytes(10000))
    found = Log()
    wal, _ = Wal.open(
        disk,
        "/data/wal",
        cluster_id=CLUSTER,
        node_id="node-1",
        log=found,
        segment_bytes=SEGMENT_BYTES,
        cache_bytes=25000,
        background=False,
    )
    assert found.cached_bytes <= 25000
    assert wal.read(1, 8, found) == b"".join(log.spans(1, 8))


# ------------------------------------------------------------------------------------------------- after a snapshot


def test_a_restarted_log_goes_on_after_the_snapshot() -> None:
    disk, log = SimulatedDisk(), Log()
    wal, _ = open_wal(disk, log)
    for _ in range(6):
        append(wal, log, bytes(20_000))
    wal.restart(100, 3, HardState(4, "node-2", 100))
    assert (wal.first_index, wal.last_index) == (101, 100)
    with pytest.raises(Compacted):
        wal.read(3, 3, None)
    log.restore(100, 3)
    append(wal, log, b"next", term=4)
    wal.close()
    recovered = Log()
    wal, recovery = open_wal(disk.crash(Outcome.NOTHING), recovered)
    assert recovery.hard_state == HardState(4, "", 0)
    assert (recovered.prev_index, recovered.term(100), recovered.last_index) == (100, 3, 101)
    assert wal.read(101, 101, None)


@pytest.mark.parametrize("outcome", [Outcome.NOTHING, Outcome.ALL, Outcome.SECTORS, Outcome.TORN])
def test_a_crash_during_a_restart_leaves_the_old_log_or_the_new_one(outcome: Outcome) -> None:
    """At every operation, and then once more during the recovery's own work."""
    seen = set()
    for number in range(1, 100):
        disk, log = SimulatedDisk(), Log()
        wal, _ = open_wal(disk, log)
        for _ in range(6):
            append(wal, log, bytes(20_000))
        begin = disk.operations

        def cut(operation: Operation, stop: int = begin + number) -> None:
            if operation.number == stop:
                raise PowerCut

        disk.hook = cut
        try:
            wal.restart(100, 3, HardState(4, "node-2", 100))
        except PowerCut:
            disk.hook = None
            recovered = Log()
            _, recovery = open_wal(disk.crash(outcome, seed=number), recovered)
            found = (recovered.prev_index, recovered.last_index, recovery.hard_state.term)
            assert found in {(0, 6, 1), (100, 100, 4)}
            seen.add(found)
        else:
            assert number > 3
            break
    else:
        raise AssertionError("it never came to an end")
    assert (0, 6, 1) in seen
    assert (100, 100, 4) in seen or outcome is Outcome.NOTHING


def test_a_restart_without_room_changes_nothing() -> None:
    disk, log = SimulatedDisk(), Log()
    wal, _ = open_wal(disk, log)
    append(wal, log, b"one", b"two")
    disk.capacity_bytes = SEGMENT_BYTES
    with pytest.raises(WalFull):
        wal.restart(100, 3, HardState(4, "node-2", 100))
    append(wal, log, b"three")
    assert (wal.first_index, wal.last_index) == (1, 3)
    disk.capacity_bytes = None
    wal.restart(100, 3, HardState(4, "node-2", 100))
    assert (wal.first_index, wal.last_index) == (101, 100)
