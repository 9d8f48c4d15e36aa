"""Snapshots on their way: the bytes, what a broken transfer leaves, and an install that is cut off at any point."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpraft.cluster import snapshot_files
from smtpraft.cluster.machine import Applied, Item
from smtpraft.cluster.snapshot_files import MarkDamaged, SnapshotBroken, SnapshotFiles
from smtpraft.cluster.snapshot_format import (
    FRAME_SNAPSHOT_BEGIN,
    FRAME_SNAPSHOT_CHUNK,
    FRAME_SNAPSHOT_HAVE,
    Chunk,
    Have,
    HaveState,
    SnapshotInfo,
    decode_begin,
    decode_chunk,
    decode_file_header,
    decode_have,
    decode_info,
    encode_begin,
    encode_chunk,
    encode_file_header,
    encode_have,
    encode_info,
)
from smtpraft.cluster.snapshots import begin_at, complete, install, restart_log, resume_install
from smtpraft.consensus import ConfState
from smtpraft.errors import Fatal
from smtpraft.fastlog import ENTRY_NORMAL, CorruptFrame, Log, crc32c
from smtpraft.storage import HardState, Wal, WalFull
from smtpraft.storage.simdisk import Operation, Outcome, PowerCut, SimulatedDisk
from smtpraft.types import NodeId

CLUSTER = b"0123456789abcdef"
CHUNK = 4096
ID = bytes(range(16))
STATE = bytes(range(256)) * 50  # three chunks and a bit
VOTERS = ConfState(voters=(NodeId("n1"), NodeId("n2"), NodeId("n3")))


def described(state: bytes = STATE, index: int = 100, term: int = 3) -> SnapshotInfo:
    return SnapshotInfo(
        ID.hex(), CLUSTER.hex(), "n1", index, term, VOTERS, len(state), hashlib.sha256(state).hexdigest(), CHUNK
    )


# ------------------------------------------------------------------------------------------------------------- bytes


@given(st.binary(min_size=16, max_size=16), st.integers(0, 2**64 - 1), st.sampled_from(HaveState))
def test_answers_survive_the_journey(id: bytes, offset: int, state: HaveState) -> None:
    kind, head = encode_have(Have(id, offset, state))
    assert (kind, decode_have(head, b"")) == (FRAME_SNAPSHOT_HAVE, Have(id, offset, state))


@given(st.binary(min_size=16, max_size=16), st.integers(0, 2**64 - 1), st.binary(min_size=1, max_size=100))
def test_chunks_survive_the_journey(id: bytes, offset: int, data: bytes) -> None:
    kind, head = encode_chunk(id, offset, crc32c(data))
    assert (kind, decode_chunk(head, data)) == (FRAME_SNAPSHOT_CHUNK, Chunk(id, offset, crc32c(data), data))


def test_descriptions_survive_the_journey_and_a_file() -> None:
    info = described()
    kind, head, tail = encode_begin(7, info)
    assert (kind, decode_begin(head, tail)) == (FRAME_SNAPSHOT_BEGIN, (7, info))
    header = encode_file_header(info)
    assert decode_file_header(header + STATE) == (info, len(header))


@given(st.binary(max_size=200))
def test_garbage_is_no_frame(data: bytes) -> None:
    for decode in (decode_begin, decode_chunk, decode_have):
        with pytest.raises(CorruptFrame):
            decode(data[:10], data[10:])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"index":100', b'"index":0'),
        (b'"term":3', b'"term":-1'),
        (b'"voters":["n1","n2","n3"]', b'"voters":[]'),
        (b'"learners":[]', b'"learners":["n1"]'),
        (b'"size_bytes":', b'"size_bytes":-'),
        (b'"chunk_bytes":4096', b'"chunk_bytes":1'),
        (ID.hex().encode(), b"ab"),
        (b'"format":1', b'"format":2'),
        (b"{", b"{{"),
    ],
)
def test_a_description_that_cannot_be_is_refused(old: bytes, new: bytes) -> None:
    text = encode_info(described())
    assert old in text
    with pytest.raises(ValueError, match=r"snapshot|cannot be|chunks"):
        decode_info(text.replace(old, new))


def test_every_flipped_bit_of_a_files_header_is_noticed() -> None:
    header = encode_file_header(described())
    for bit in range(0, len(header) * 8, 7):
        damaged = bytearray(header)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match=r"snapshot|damaged"):
            decode_file_header(bytes(damaged))


# --------------------------------------------------------------------------------------------------------- receiving


def chunks(state: bytes = STATE) -> list[tuple[int, bytes]]:
    return [(at, state[at : at + CHUNK]) for at in range(0, len(state), CHUNK)]


def opened(disk: SimulatedDisk) -> SnapshotFiles:
    files = SnapshotFiles(disk, "/data/snapshot")
    assert files.open() is None
    return files


def received(files: SnapshotFiles, info: SnapshotInfo, state: bytes = STATE) -> None:
    part = files.begin(info)
    for offset, data in chunks(state):
        if offset >= part.offset:
            part.write(offset, crc32c(data), data)
    files.finish(part)


def test_a_transfer_goes_on_where_it_was_broken_off() -> None:
    disk = SimulatedDisk()
    files = opened(disk)
    part = files.begin(described())
    for offset, data in chunks()[:2]:
        part.write(offset, crc32c(data), data)
    part.close()
    part = opened(disk).begin(described())
    assert part.offset == 2 * CHUNK
    for offset, data in chunks()[2:]:
        part.write(offset, crc32c(data), data)
    files.finish(part)
    assert disk.contents(files.ready_path) == STATE
    assert disk.list_directory("/data/snapshot") == [snapshot_files.READY]
    assert disk.open_files == 0


def test_of_another_copy_nothing_is_taken_over() -> None:
    disk = SimulatedDisk()
    files = opened(disk)
    part = files.begin(described())
    part.write(0, crc32c(STATE[:CHUNK]), STATE[:CHUNK])
    part.close()
    other = described(STATE[::-1])
    assert files.begin(other).offset == 0


@pytest.mark.parametrize("outcome", [Outcome.NOTHING, Outcome.SECTORS, Outcome.TORN])
def test_after_a_power_cut_only_what_is_sound_is_kept(outcome: Outcome) -> None:
    """And the whole is right in the end, whatever the disk has made of the parts."""
    for seed in range(30):
        disk = SimulatedDisk()
        part = opened(disk).begin(described())
        for offset, data in chunks():
            part.write(offset, crc32c(data), data)
        after = disk.crash(outcome, seed)
        files = opened(after)
        received(files, described())
        assert after.contents(files.ready_path) == STATE


def test_a_damaged_chunk_is_refused_and_the_transfer_can_go_on() -> None:
    files = opened(SimulatedDisk())
    part = files.begin(described())
    with pytest.raises(SnapshotBroken):
        part.write(0, crc32c(STATE[:CHUNK]), STATE[:4000] + bytes(96))
    with pytest.raises(SnapshotBroken):
        part.write(CHUNK, crc32c(STATE[CHUNK : 2 * CHUNK]), STATE[CHUNK : 2 * CHUNK])
    with pytest.raises(SnapshotBroken):
        part.write(0, crc32c(STATE[:10]), STATE[:10])
    part.write(0, crc32c(STATE[:CHUNK]), STATE[:CHUNK])
    part.close()
    received(files, described())


def test_a_whole_that_is_not_what_was_announced_is_thrown_away() -> None:
    """Each chunk was sound, the sum of them is not: a sender with a broken disk."""
    files = opened(SimulatedDisk())
    with pytest.raises(SnapshotBroken):
        received(files, described(STATE[::-1]))
    assert not files.ready()
    assert files.begin(described(STATE[::-1])).offset == 0


# -------------------------------------------------------------------------------------------------------- installing


class Machine:
    """A state of one file, on the simulated disk."""

    def __init__(self, disk: SimulatedDisk) -> None:
        self.disk = disk

    @property
    def state(self) -> bytes:
        return self.disk.contents("/data/machine/state")

    def store(self, content: bytes) -> None:
        self.disk.make_directory("/data/machine")
        file = self.disk.create("/data/machine/new")
        file.pwritev([content], 0)
        file.sync()
        file.close()
        self.disk.rename("/data/machine/new", "/data/machine/state")
        self.disk.sync_directory("/data/machine")

    def install_snapshot(self, path: str) -> None:
        if "new" in self.disk.list_directory("/data/machine"):
            self.disk.unlink("/data/machine/new")
        self.store(self.disk.contents(path))
        self.disk.unlink(path)

    def open(self) -> Applied:
        raise NotImplementedError

    def apply(self, items: Sequence[Item], notes: bytes) -> Sequence[object]:
        raise NotImplementedError

    def write_snapshot(self, path: str) -> Applied:
        raise NotImplementedError

    def checkpoint(self) -> int:
        raise NotImplementedError

    def before_compaction(self, to_index: int) -> None:
        raise NotImplementedError

    def digest(self) -> tuple[int, int]:
        raise NotImplementedError

    def digest_at(self, index: int) -> int | None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


def open_wal(disk: SimulatedDisk) -> tuple[Wal, HardState, Log]:
    entries = Log()
    wal, recovery = Wal.open(
        disk,
        "/data/wal",
        cluster_id=CLUSTER,
        node_id="n1",
        log=entries,
        segment_bytes=64 * 1024,
        background=False,
        promises="/data",
    )
    return wal, recovery.hard_state, entries


def behind(disk: SimulatedDisk) -> tuple[Machine, SnapshotFiles, Wal]:
    """Return a node with an old state and log, and a snapshot that it has received."""
    machine = Machine(disk)
    machine.store(b"old")
    wal, _, entries = open_wal(disk)
    block = entries.append(2, 0, ENTRY_NORMAL, [bytes(1000)] * 5)
    wal.write([block], 1, 5, HardState(2, "n2", 5))
    files = opened(disk)
    received(files, described())
    return machine, files, wal


def start(disk: SimulatedDisk) -> tuple[bytes, int, int, HardState]:
    """Start as a node does; return its state, where its log begins and ends, and what it has promised."""
    machine = Machine(disk)
    files = SnapshotFiles(disk, "/data/snapshot")
    pending = resume_install(files, machine)
    wal, found, entries = open_wal(disk)
    if pending is not None:
        found = restart_log(files, wal, entries, found, pending)
    wal.close()
    assert disk.list_directory("/data/snapshot") == []
    return machine.state, entries.prev_index, entries.last_index, found


def cut_at(number: int) -> Callable[[Operation], None]:
    def hook(operation: Operation) -> None:
        if operation.number == number:
            raise PowerCut

    return hook


OLD = (b"old", 0, 5, HardState(2, "n2", 5))
NEW = (STATE, 100, 100, HardState(4, "n3", 100))


@pytest.mark.parametrize("outcome", [Outcome.NOTHING, Outcome.ALL, Outcome.SECTORS, Outcome.TORN])
def test_an_install_that_is_cut_off_anywhere_is_old_or_new_after_the_start(outcome: Outcome) -> None:
    """At each operation in turn; and the start after it is cut off at each of its own."""
    seen = set()
    for number in range(1, 200):
        disk = SimulatedDisk()
        machine, files, wal = behind(disk)
        first = disk.operations

        disk.hook = cut_at(first + number)
        try:
            install(files, wal, described(), NEW[3], functools.partial(machine.install_snapshot, files.ready_path))
        except PowerCut:
            disk.hook = None
        else:
            assert start(disk.crash(Outcome.NOTHING)) == NEW
            break
        for again in range(1, 60):
            after = disk.crash(outcome, seed=number)
            after.hook = cut_at(again)
            try:
                found = start(after)
            except PowerCut:
                found = start(after.crash(outcome, seed=again))
                assert found in (OLD, NEW)
            else:
                assert found in (OLD, NEW)
                seen.add(found[1])
                break
    else:
        raise AssertionError("it never came to an end")
    assert seen == {0, 100}


def test_a_mark_that_the_disk_has_changed_is_no_mark() -> None:
    """Every bit of it: a digit that is another would be a term, a vote or an index that nobody gave."""
    path = "/data/snapshot/install.json"
    disk = SimulatedDisk()
    machine, files, wal = behind(disk)
    files.mark(described(), NEW[3])
    wal.close()
    size = 8 * len(disk.contents(path))
    assert isinstance(begin_at(files, machine), tuple)
    for bit in range(size):
        disk.flip(path, bit)
        assert isinstance(begin_at(files, machine), MarkDamaged), bit
        disk.flip(path, bit)
    assert isinstance(begin_at(files, machine), tuple)


def test_without_the_mark_a_node_abstains_until_it_has_all_from_the_others() -> None:
    """Which entries its new state replaces nobody knows: it must not vote, nor answer, with what stands in its log."""
    disk = SimulatedDisk()
    machine, files, wal = behind(disk)
    files.mark(described(), NEW[3])
    machine.install_snapshot(files.ready_path)  # and the log is the old one
    wal.close()
    disk.flip("/data/snapshot/install.json", 200)
    pending = begin_at(files, machine)
    assert isinstance(pending, MarkDamaged)
    wal, found, entries = open_wal(disk)
    with pytest.raises(Fatal, match=r"Restore one .*nothing is changed"):
        complete(files, wal, entries, found, pending, has_others=False)
    assert entries.last_index == 5
    state = complete(files, wal, entries, found, pending, has_others=True)
    assert (state.term, state.vote, state.commit) == (3, "", 0)
    assert (entries.prev_index, entries.last_index) == (0, 0)
    assert wal.abstain_term == 2
    wal.close()
    assert disk.list_directory("/data/snapshot") == []
    after = disk.crash(Outcome.NOTHING)
    wal, found, entries = open_wal(after)
    assert (found.term, found.vote, entries.last_index, wal.abstain_term) == (3, "", 0, 2)
    wal.close()


def test_without_room_the_install_waits_and_is_repeated() -> None:
    disk = SimulatedDisk()
    machine, files, wal = behind(disk)
    done = 0

    def replace_state() -> None:
        nonlocal done
        done += 1
        if done == 1:
            machine.install_snapshot(files.ready_path)
            disk.capacity_bytes = 0

    with pytest.raises(WalFull):
        install(files, wal, described(), HardState(4, "n3", 100), replace_state)
    with pytest.raises(WalFull):  # not even for the mark
        install(files, wal, described(), HardState(4, "n3", 100), replace_state)
    disk.capacity_bytes = None
    install(files, wal, described(), HardState(4, "n3", 100), replace_state)
    assert start(disk.copy()) == NEW
