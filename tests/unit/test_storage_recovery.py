"""What recovery makes of a log that is not as it was written: torn, damaged, or simply not what it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from smtpraft.fastlog import ENTRY_NORMAL, Log, encode_entries
from smtpraft.storage import HardState, Recovery, Wal, WalCorrupt, WalNewer
from smtpraft.storage.batch import BatchHeader, decode_header, encode_header, survey
from smtpraft.storage.recovery import TORN_COPIES_MAX
from smtpraft.storage.segment import SegmentHeader, decode_segment_header, encode_segment_header
from smtpraft.storage.simdisk import Operation, Outcome, PowerCut, SimulatedDisk

CLUSTER = b"0123456789abcdef"
SEGMENT_BYTES = 64 * 1024
PAGE = 4096


def open_wal(disk: SimulatedDisk, log: Log | None = None) -> tuple[Wal, Recovery]:
    return Wal.open(
        disk,
        "/wal",
        cluster_id=CLUSTER,
        node_id="node-1",
        log=log if log is not None else Log(),
        segment_bytes=SEGMENT_BYTES,
        background=False,
    )


def written(*sizes: int, close: bool = True, sync: bool = True) -> SimulatedDisk:
    """Return a disk on which a log of one entry a batch, of these sizes, is stored; all terms are 1."""
    disk = SimulatedDisk()
    wal, _ = open_wal(disk)
    for index, size in enumerate(sizes, 1):
        wal.write([entry(index, size)], index, index, HardState(1, "", index - 1), sync)
    if close:
        wal.close()
    return disk.copy()


def entry(index: int, size: int = 10, term: int = 1) -> bytes:
    return encode_entries(term, index, 0, ENTRY_NORMAL, [bytes([index % 256]) * size])


def segments(disk: SimulatedDisk) -> list[str]:
    return [f"/wal/{name}" for name in disk.list_directory("/wal") if name.endswith(".wal")]


def rewrite(disk: SimulatedDisk, page: int, change: Callable[[BatchHeader], BatchHeader], entries: bytes = b"") -> None:
    """Change the header of the batch at a page of the first segment, and give it a right checksum: sound, but wrong."""
    path = segments(disk)[0]
    header = decode_header(disk.contents(path)[page * PAGE :])
    assert header is not None
    disk.damage(path, page * PAGE, encode_header(change(header))[0] + entries)


def refuse(disk: SimulatedDisk) -> WalCorrupt:
    """Return the error that opening the log raises; check that it changes nothing."""
    before = {path: disk.contents(path) for path in segments(disk)}
    open_files = disk.open_files
    with pytest.raises(WalCorrupt) as caught:
        open_wal(disk)
    assert {path: disk.contents(path) for path in segments(disk)} == before
    assert disk.open_files == open_files
    return caught.value


def replace(header: BatchHeader, **changes: Any) -> BatchHeader:
    return header._replace(**changes)


# ----------------------------------------------------------------------------------------------------------- torn tails


def test_a_torn_batch_is_cut_and_a_copy_is_kept() -> None:
    disk = written(10, 9000, close=False, sync=False)
    path = segments(disk)[0]
    disk.damage(path, 3 * PAGE, bytes(512))  # the second page of the second batch
    torn = disk.contents(path)[2 * PAGE : 5 * PAGE]
    log = Log()
    wal, recovery = open_wal(disk, log)
    assert (recovery.last_index, recovery.torn_bytes) == (1, 3 * PAGE)
    assert recovery.hard_state == HardState(1, "", 0)
    assert disk.contents(recovery.torn_copy) == torn
    assert recovery.torn_copy == f"/wal/torn/000001-{path.removeprefix('/wal/')}-8192"
    assert disk.contents(path)[2 * PAGE :] == bytes(SEGMENT_BYTES - 2 * PAGE)
    wal.write([entry(2)], 2, 2, HardState(2, "", 1))
    assert open_wal(disk.crash(Outcome.NOTHING))[1].last_index == 2


def test_a_batch_that_survived_where_one_before_it_did_not_is_cut_too() -> None:
    """Neither was synced, and the disk stored them in its own order (etcd #6378: a reordered tail, and no start)."""
    disk = written(10, 10, 10, 10, close=False, sync=False)
    disk.damage(segments(disk)[0], 2 * PAGE, bytes(PAGE))
    _, recovery = open_wal(disk)
    assert (recovery.last_index, recovery.torn_bytes) == (1, 3 * PAGE)


def test_an_old_batch_never_continues_a_new_one() -> None:
    """The second life repeats the batch that was torn, byte for byte; the next one of the first life still fits."""
    disk = written(10, 10, 10, close=False, sync=False)
    disk.damage(segments(disk)[0], 2 * PAGE, bytes(PAGE))
    wal, _ = open_wal(disk)
    wal.write([entry(2)], 2, 2, HardState(1, "", 1))
    assert open_wal(disk.crash(Outcome.NOTHING))[1].last_index == 2


def test_a_compaction_whose_word_was_torn_away_did_not_happen() -> None:
    """Its mark lies behind a torn batch: to act on it and then cut it would leave a log without its beginning."""
    disk = SimulatedDisk()
    wal, _ = open_wal(disk)
    for index in range(1, 5):
        wal.write([entry(index, 20000)], index, index, HardState(1))  # two a segment
    wal.write([entry(5)], 5, 5, HardState(1), False)
    before = disk.operations

    def cut(operation: Operation) -> None:
        if operation.number == before + 2:  # the sync of the mark
            raise PowerCut

    disk.hook = cut
    with pytest.raises(PowerCut):
        wal.compact(4)
    disk = disk.copy()
    disk.flip(segments(disk)[-1], (11 * PAGE + 160) * 8)
    for _ in range(2):
        _, recovery = open_wal(disk)
        assert (recovery.first_index, recovery.last_index) == (1, 4)
        disk = disk.crash(Outcome.NOTHING)


def test_only_the_newest_torn_copies_are_kept() -> None:
    disk = written()
    for _ in range(TORN_COPIES_MAX + 5):
        wal, _ = open_wal(disk)
        wal.write([entry(1, 5000)], 1, 1, HardState(1), False)
        disk = disk.copy()
        disk.damage(segments(disk)[0], 2 * PAGE, bytes(512))
    _, recovery = open_wal(disk)
    copies = disk.list_directory("/wal/torn")
    assert len(copies) == TORN_COPIES_MAX
    assert recovery.torn_copy == f"/wal/torn/{copies[-1]}"
    assert copies[-1].startswith(f"{TORN_COPIES_MAX + 5:06d}-")


def test_a_full_disk_does_not_keep_a_torn_log_from_starting() -> None:
    disk = written(10, 10, close=False, sync=False)
    disk.damage(segments(disk)[0], 2 * PAGE + 160, b"x")
    disk.capacity_bytes = SEGMENT_BYTES
    _, recovery = open_wal(disk)
    assert (recovery.last_index, recovery.torn_bytes, recovery.torn_copy) == (1, PAGE, "")


# --------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("at", [2 * PAGE, 2 * PAGE + 100, 2 * PAGE + 160])
def test_damage_before_what_a_later_batch_vouches_for_is_refused(at: int) -> None:
    disk = written(10, 10, 10, close=False)
    disk.flip(segments(disk)[0], at * 8)
    error = refuse(disk)
    assert (error.file, error.offset) == (segments(disk)[0], 2 * PAGE)
    assert (error.lost_first, error.lost_last) == (2, 2)
    assert "entries 2 to 2 are lost" in str(error)


def test_damage_to_the_last_batch_is_known_after_a_clean_end() -> None:
    disk = written(10, 10, 10)
    disk.flip(segments(disk)[0], (3 * PAGE + 160) * 8)
    assert refuse(disk).lost_last == 3


def test_damage_to_the_last_batch_is_known_once_it_has_been_vouched_for() -> None:
    disk = SimulatedDisk()
    wal, _ = open_wal(disk)
    wal.write([entry(1)], 1, 1, HardState(1), False)
    for _ in range(2):
        wal.vouch()
    assert wal.stats.batches == 1, "it is not synced"
    wal.write([entry(2)], 2, 2, HardState(1))
    for _ in range(2):
        wal.vouch()
    assert wal.stats.batches == 3
    disk = disk.copy()
    disk.flip(segments(disk)[0], (2 * PAGE + 160) * 8)
    assert refuse(disk).lost_last == 2


def test_a_clean_end_vouches_for_what_nobody_asked_to_sync() -> None:
    disk = SimulatedDisk()
    wal, _ = open_wal(disk)
    wal.write([entry(1)], 1, 1, HardState(1), False)
    wal.close()
    disk = disk.crash(Outcome.NOTHING)
    assert open_wal(disk.copy())[1].last_index == 1
    disk.flip(segments(disk)[0], (PAGE + 160) * 8)
    assert refuse(disk).lost_last == 1


def test_damage_to_several_batches_names_all_that_is_lost() -> None:
    disk = written(10, 10, 10, 10, 10)
    disk.damage(segments(disk)[0], 2 * PAGE, bytes(2 * PAGE))
    error = refuse(disk)
    assert (error.lost_first, error.lost_last) == (2, 3)


def test_damage_to_an_earlier_segment_is_refused_whatever_follows() -> None:
    disk = written(40000, 40000, close=False)
    assert len(segments(disk)) == 2
    disk.flip(segments(disk)[0], (PAGE + 10) * 8)
    error = refuse(disk)
    assert (error.file, error.lost_first, error.lost_last) == (segments(disk)[0], 1, 1)


def test_a_lost_hard_state_is_damage_although_it_holds_no_entries() -> None:
    """A vote that is forgotten can be given twice (Raft Figure 2)."""
    disk = SimulatedDisk()
    wal, _ = open_wal(disk)
    wal.write([entry(1)], 1, 1, HardState(1))
    wal.write([], 0, 0, HardState(2, "node-2"))
    wal.write([], 0, 0, HardState(2, "node-2", 1))
    disk.damage(segments(disk)[0], 2 * PAGE, bytes(PAGE))
    error = refuse(disk)
    assert error.lost_first > error.lost_last
    assert "no entries are lost" in str(error)


def test_a_lost_truncation_may_reach_back_to_the_commit_index() -> None:
    disk = SimulatedDisk()
    wal, _ = open_wal(disk)
    for index in (1, 2, 3, 4, 5):
        wal.write([entry(index)], index, index, HardState(1, "", min(index, 2)))
    wal.write([entry(4, term=2)], 4, 4, HardState(2, "", 2))
    wal.write([entry(5, term=2)], 5, 5, HardState(2, "", 2))
    wal.close()
    disk.damage(segments(disk)[0], 6 * PAGE, bytes(PAGE))
    error = refuse(disk)
    assert (error.lost_first, error.lost_last) == (3, 4)


def test_what_was_recovered_is_vouched_for_by_the_first_write_after_it() -> None:
    disk = written(10, 10, close=False)
    wal, _ = open_wal(disk)
    wal.write([], 0, 0, HardState(2), False)
    disk = disk.copy()
    disk.flip(segments(disk)[0], (2 * PAGE + 160) * 8)
    refuse(disk)


def test_a_damaged_segment_header_is_refused() -> None:
    disk = written(40000, 40000)
    for number, first in ((0, 1), (1, 2)):
        damaged = disk.copy()
        damaged.flip(segments(disk)[number], 99)
        error = refuse(damaged)
        assert (error.file, error.offset, error.lost_first) == (segments(disk)[number], 0, first)


def test_a_segment_cut_short_is_refused() -> None:
    disk = written(10)
    path = segments(disk)[0]
    data = disk.contents(path)[:-1]
    disk.unlink(path)
    disk.create(path).pwritev([data], 0)
    with pytest.raises(WalCorrupt, match="has 65535 bytes, of 65536"):
        open_wal(disk)


def test_a_segment_under_another_name_is_refused() -> None:
    disk = written(10)
    disk.rename(segments(disk)[0], "/wal/0000000000000002-0000000000000001.wal")
    with pytest.raises(WalCorrupt, match="its name does not say"):
        open_wal(disk)


def test_segments_that_vanished_altogether_are_missed() -> None:
    disk = written(10)
    wal, _ = open_wal(disk)
    wal.prepare_spares()
    disk.unlink(segments(disk)[0])
    with pytest.raises(WalCorrupt, match="all segments are missing"):
        open_wal(disk)


def test_a_missing_segment_is_named_with_what_it_held() -> None:
    disk = written(40000, 40000, 40000, 40000)
    disk.unlink(segments(disk)[1])
    disk.unlink(segments(disk)[1])
    error = refuse(disk)
    assert error.reason == "segment 2, which comes before it, is missing"
    assert (error.lost_first, error.lost_last) == (2, 3)


def test_a_missing_first_segment_is_not_taken_for_compaction() -> None:
    disk = written(40000, 40000, 40000)
    disk.unlink(segments(disk)[0])
    error = refuse(disk)
    assert (error.lost_first, error.lost_last) == (1, 1)


# -------------------------------------------------------------------------------------------------- sound but misplaced


def test_a_batch_in_the_place_of_another_is_refused() -> None:
    """A misdirected write: every checksum is right."""
    disk = written(10, 10, 10)
    path = segments(disk)[0]
    disk.damage(path, 2 * PAGE, disk.contents(path)[PAGE : 2 * PAGE])
    assert refuse(disk).reason == "holds batch 1 in place of 2"


def test_a_batch_that_follows_another_than_the_one_before_it_is_refused() -> None:
    disk = written(10, 10, close=False)
    rewrite(disk, 2, lambda header: replace(header, previous_crc=header.previous_crc ^ 1))
    assert refuse(disk).reason == "batch 2 follows another batch than the one before it"


def test_a_gap_is_refused() -> None:
    disk = written(10, 10, close=False)
    block = entry(4)
    found = survey([block])
    assert found is not None
    rewrite(
        disk,
        2,
        lambda header: replace(header, first_index=4, last_index=4, entries_crc=found.entries_crc),
        block,
    )
    error = refuse(disk)
    assert error.reason == "entry 4 after 1 leaves a gap"
    assert (error.lost_first, error.lost_last) == (2, 3)


def test_a_term_that_goes_back_is_refused() -> None:
    disk = SimulatedDisk()
    wal, _ = open_wal(disk)
    wal.write([entry(1, term=5)], 1, 1, HardState(5))
    wal.write([entry(2, term=6)], 2, 2, HardState(6))
    wal.write([entry(2, term=4)], 2, 2, HardState(6))
    assert "term 4 after 5" in refuse(disk).reason


def test_sound_entries_that_the_header_does_not_vouch_for_are_not_taken() -> None:
    """Entries of the same indexes and sizes that once lay there, under a header that was written for others."""
    disk = written(10, 10, 10)
    disk.damage(segments(disk)[0], 2 * PAGE + 152, entry(2, term=2))
    assert refuse(disk).lost_first == 2


def test_a_commit_index_beyond_the_end_is_refused() -> None:
    disk = written(10, 10, close=False)
    rewrite(disk, 2, lambda header: replace(header, hard_state=HardState(1, "", 3)))
    error = refuse(disk)
    assert (error.lost_first, error.lost_last) == (3, 3)


def rewrite_segment(disk: SimulatedDisk, number: int, **changes: object) -> None:
    path = segments(disk)[number]
    header = decode_segment_header(disk.contents(path)[:PAGE])
    assert header is not None
    fields = {name: getattr(header, name) for name in SegmentHeader.__slots__}
    disk.damage(path, 0, encode_segment_header(SegmentHeader(**{**fields, **changes})))


@pytest.mark.parametrize("changes", [{"previous_crc": 1}, {"prev_term": 9}, {"first_batch": 7}])
def test_a_segment_that_does_not_go_on_where_the_last_one_ended_is_refused(changes: dict[str, object]) -> None:
    disk = written(40000, 40000)
    rewrite_segment(disk, 1, **changes)
    refuse(disk)


def test_a_newer_format_is_refused_as_such() -> None:
    disk = written(10)
    rewrite_segment(disk, 0, version=2)
    with pytest.raises(WalNewer, match="format 2; this program knows 1"):
        open_wal(disk)
    assert disk.open_files == 0
