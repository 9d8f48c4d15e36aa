"""What a turn wants written goes to the disk in pieces that a busy disk finishes in a moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest

from smtpraft.cluster.appends import PIECE_BYTES_MAX, Appends, Write
from smtpraft.fastlog import ENTRY_NORMAL, Log
from smtpraft.storage import HardState

MIB = 1024 * 1024


class Disk:
    """Notes what it is given."""

    def __init__(self) -> None:
        self.writes: list[Write] = []
        self.dones: list[Callable[[], None]] = []

    def submit(
        self,
        spans: Sequence[memoryview],
        first: int,
        last: int,
        state: HardState | None,
        sync: bool,
        done: Callable[[], None],
    ) -> None:
        self.writes.append(Write(spans, first, last, state, sync))
        self.dones.append(done)


def hand_over(log: Log, first: int, last: int, commit: int) -> tuple[Disk, list[str]]:
    disk, told = Disk(), list[str]()
    appends = Appends(SimpleNamespace(), log)  # type: ignore[arg-type]
    write = Write(log.spans(first, last), first, last, HardState(3, "n1", commit), sync=True)
    appends.submit(write, disk.submit, lambda: told.append("done"))
    return disk, told


@pytest.mark.parametrize("commit", [2, 7, 14])
def test_a_long_write_goes_in_pieces_and_is_done_with_the_last(commit: int) -> None:
    log = Log()
    log.append(3, 0, ENTRY_NORMAL, [b"before"] * 2)
    log.append(3, 0, ENTRY_NORMAL, [bytes([number]) * (MIB - 100) for number in range(10)])
    log.append(3, 0, ENTRY_NORMAL, [b"x" * 100, b"y" * 3 * MIB])
    disk, told = hand_over(log, 3, 14, commit)
    assert [(write.first_index, write.last_index) for write in disk.writes] == [(3, 6), (7, 10), (11, 13), (14, 14)]
    for write in disk.writes:
        assert sum(map(len, write.spans)) <= PIECE_BYTES_MAX
        assert write.sync
        assert write.hard_state is not None
        assert write.hard_state == HardState(3, "n1", min(commit, write.last_index)), "a crash may come after any"
    assert b"".join(b"".join(write.spans) for write in disk.writes) == b"".join(log.spans(3, 14))
    for done in disk.dones[:-1]:
        done()
    assert told == []
    disk.dones[-1]()
    assert told == ["done"]


def test_pieces_are_as_small_as_is_asked_for() -> None:
    log, disk = Log(), Disk()
    log.append(1, 0, ENTRY_NORMAL, [b"a" * 10, b"b" * 10, b"c" * 500, b"d" * 10, b"e" * 10])
    small = log.size_bytes(1, 2)
    write = Write(log.spans(1, 5), 1, 5, HardState(1, "n1", 5), sync=True)
    Appends(SimpleNamespace(), log, piece_bytes_max=small).submit(write, disk.submit, lambda: None)  # type: ignore[arg-type]
    assert [(write.first_index, write.last_index) for write in disk.writes] == [(1, 2), (3, 3), (4, 5)]


def test_what_is_short_or_one_entry_stays_as_it_is() -> None:
    log = Log()
    log.append(1, 0, ENTRY_NORMAL, [b"a" * 1000] * 100)
    log.append(1, 0, ENTRY_NORMAL, [b"b" * (PIECE_BYTES_MAX - 100)])
    assert len(hand_over(log, 1, 100, 1)[0].writes) == 1
    assert len(hand_over(log, 101, 101, 1)[0].writes) == 1
    pieces = hand_over(log, 100, 101, 1)[0].writes
    assert [(write.first_index, write.last_index) for write in pieces] == [(100, 100), (101, 101)]
    disk, told = Disk(), list[str]()
    Appends(SimpleNamespace(), log).submit(  # type: ignore[arg-type]
        Write((), 0, 0, None, sync=False), disk.submit, lambda: told.append("done")
    )
    assert len(disk.writes) == 1
