"""Power cuts at every operation of the write-ahead log, each with several possible disks after it.

What must hold (the storage invariants): what recovery gives is what was written up to some batch, and that batch is not
before the last one acknowledged; recovering twice gives the same; so does a power cut inside recovery; and a log that
went on after a recovery keeps all of this.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpraft.fastlog import ENTRY_NORMAL, Log, encode_entries
from smtpraft.storage import HardState, Wal, WalCorrupt, WalFailed, WalFull
from smtpraft.storage.simdisk import Operation, Outcome, PowerCut, SimulatedDisk

CLUSTER = b"0123456789abcdef"
SEGMENT_BYTES = 64 * 1024
DIRECTORY = "/wal"
NO_HARD_STATE = HardState()


@dataclass(frozen=True)
class State:
    """What the log holds after some batch: every entry's bytes, from index 1 on, and the hard state."""

    entries: tuple[bytes, ...] = ()
    hard_state: HardState = NO_HARD_STATE


@dataclass
class Life:
    """A log and what it was told: `states[n]` is after the nth batch, all up to `acknowledged` were synced."""

    disk: SimulatedDisk
    states: list[State] = field(default_factory=lambda: [State()])
    acknowledged: int = 0
    compacted_to: int = 0
    wal: Wal | None = None

    def open(self) -> Log:
        log = Log()
        self.wal, _ = open_log(self.disk, log)
        return log

    def write(self, sizes: list[int], *, back: int = 0, sync: bool = True) -> None:
        """Write a batch of entries of these sizes, in place of the last `back` ones."""
        assert self.wal is not None
        before = self.states[-1]
        kept = before.entries[: len(before.entries) - back]
        term = before.hard_state.term + 1  # a new one each time, so that no two states are alike
        first = len(kept) + 1
        records = [
            encode_entries(term, first + number, 7, ENTRY_NORMAL, [random.Random(term).randbytes(size)])
            for number, size in enumerate(sizes)
        ]
        entries = (*kept, *records)
        hard_state = HardState(term, f"node-{term % 3}", min(before.hard_state.commit + 1, len(kept)))
        self.states.append(State(entries, hard_state))
        last = len(entries) if records else 0
        self.wal.write([memoryview(b"".join(records))] if records else [], first, last, hard_state, sync)
        if sync:
            self.acknowledged = len(self.states) - 1

    def compact(self, to_index: int) -> None:
        assert self.wal is not None
        self.compacted_to = max(self.compacted_to, to_index)
        self.wal.compact(to_index)

    def prepare(self) -> None:
        assert self.wal is not None
        while self.wal.prepare_spares():
            pass

    def check(self, log: Log, hard_state: HardState) -> int:
        """Return the number of the batch up to which `log` goes; fail if it is none, or before an acknowledged one."""
        number = hard_state.term
        assert self.acknowledged <= number < len(self.states), "something acknowledged is lost"
        state = self.states[number]
        assert hard_state == state.hard_state
        assert log.last_index == len(state.entries)
        assert log.first_index <= self.compacted_to + 1
        assert contents(log) == b"".join(state.entries[log.prev_index :])
        return number

    def after(self, disk: SimulatedDisk, number: int) -> Life:
        """Return the life that begins on `disk` with what was recovered there."""
        return Life(disk, self.states[: number + 1], number, self.compacted_to)


def open_log(disk: SimulatedDisk, log: Log) -> tuple[Wal, HardState]:
    wal, recovery = Wal.open(
        disk, DIRECTORY, cluster_id=CLUSTER, node_id="node-1", log=log, segment_bytes=SEGMENT_BYTES, background=False
    )
    assert recovery.first_index == log.first_index
    assert recovery.last_index == log.last_index
    return wal, recovery.hard_state


def contents(log: Log) -> bytes:
    return b"".join(log.spans(log.first_index, log.last_index)) if log.last_index > log.prev_index else b""


def cut_before(number: int) -> Callable[[Operation], None]:
    def hook(operation: Operation) -> None:
        if operation.number >= number:
            raise PowerCut

    return hook


def fail_at(number: int, code: int) -> Callable[[Operation], None]:
    def hook(operation: Operation) -> None:
        if operation.number == number:
            raise OSError(code, os.strerror(code), operation.path)

    return hook


def images(disk: SimulatedDisk, count: int = 3) -> Iterator[SimulatedDisk]:
    """Yield possible disks after a power cut now."""
    yield disk.crash(Outcome.NOTHING)
    yield disk.crash(Outcome.ALL)
    for seed in range(count):
        yield disk.crash(Outcome.SECTORS, seed)
        yield disk.crash(Outcome.TORN, seed)


# --------------------------------------------------------------------------------------------------------- the scripts


def appends(life: Life) -> None:
    """Batches with and without sync, with and without entries, and a truncation; within one segment."""
    life.open()
    life.write([])
    life.write([10, 0, 300])
    life.write([], sync=False)
    life.write([700, 20], sync=False)
    life.write([600], sync=False)
    life.write([30])
    life.write([], sync=False)
    life.write([1000, 1000], back=2, sync=False)
    life.write([])
    life.write([40], back=1)
    life.write([50], sync=False)
    life.write([60], sync=False)


def rolls(life: Life) -> None:
    """Segments begun with a spare, without one, for a batch larger than a segment, and by a truncation."""
    life.open()
    for size in (28000, 16000, 20000):
        life.write([size], sync=False)
    life.prepare()
    life.write([24000])
    life.write([36000], sync=False)
    life.write([2 * SEGMENT_BYTES, 5])
    life.write([100], sync=False)
    life.write([50000], sync=False)
    life.write([32000, 8], back=2)


def compacts(life: Life) -> None:
    """Segments recycled, and used again over what they held before."""
    life.open()
    life.prepare()
    for _ in range(9):
        life.write([10000, 10000, 100])
    life.compact(20)
    life.write([20], sync=False)
    for _ in range(9):
        life.write([10000, 10000, 100], sync=False)
    life.write([10000], back=3)
    life.compact(48)
    for _ in range(5):
        life.write([100, 10000, 10000])
    assert life.wal is not None
    life.wal.close()


def reuses(life: Life) -> None:
    """No spares but recycled segments, which are used again at once."""
    life.open()
    for _ in range(4):
        life.write([40000])
    life.compact(4)
    for _ in range(4):
        life.write([40000])
    life.compact(8)
    life.write([40000], back=1, sync=False)
    life.write([40000])


SCRIPTS = {"append": appends, "roll": rolls, "compaction": compacts, "reuse": reuses}


def operations_of(script: Callable[[Life], None]) -> int:
    life = Life(SimulatedDisk(1))
    script(life)
    return life.disk.operations


def lives(script: Callable[[Life], None]) -> Iterator[Life]:
    """Yield the script cut before its first operation, before its second, and so on, and once whole."""
    for number in range(1, operations_of(script) + 2):
        life = Life(SimulatedDisk(1))
        life.disk.hook = cut_before(number)
        with suppress(PowerCut):
            script(life)
        life.disk.hook = None
        yield life


# ----------------------------------------------------------------------------------------------------------- the tests


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_power_cut_anywhere_loses_nothing_acknowledged(name: str) -> None:
    for life in lives(SCRIPTS[name]):
        for disk in images(life.disk):
            log = Log()
            _, hard_state = open_log(disk, log)
            number = life.check(log, hard_state)

            again = Log()
            _, hard_state = open_log(disk.crash(Outcome.NOTHING), again)
            assert life.check(again, hard_state) == number, "what was recovered did not stay"
            assert contents(again) == contents(log)


def check_recovered(life: Life, disks: Iterable[SimulatedDisk]) -> None:
    for disk in disks:
        log = Log()
        _, hard_state = open_log(disk, log)
        life.check(log, hard_state)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_power_cut_inside_recovery_changes_nothing(name: str) -> None:
    for life in lives(SCRIPTS[name]):
        for image in images(life.disk, 1):
            log = Log()
            untouched = image.copy()
            _, hard_state = open_log(image, log)
            number = life.check(log, hard_state)
            for cut in range(1, image.operations + 1):
                disk = untouched.copy()
                disk.hook = cut_before(cut)
                with pytest.raises(PowerCut):
                    open_log(disk, Log())
                disk.hook = None
                for after in (disk.crash(Outcome.NOTHING), disk.crash(Outcome.ALL), disk.crash(Outcome.TORN, cut)):
                    again = Log()
                    _, hard_state = open_log(after, again)
                    assert life.check(again, hard_state) == number
                    assert again.first_index == log.first_index


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_log_that_goes_on_after_a_power_cut_can_be_cut_again(name: str) -> None:
    """The second life writes the same sizes over what was lost, so that old batches fit behind new ones, then rolls."""
    for life in lives(SCRIPTS[name]):
        for image in [*images(life.disk, 2)][2:]:
            log = Log()
            wal, hard_state = open_log(image, log)
            second = life.after(image, life.check(log, hard_state))
            second.wal = wal
            lost = life.states[len(second.states) :]
            for state in lost[:-1]:
                sizes = [len(record) - 36 for record in state.entries[len(second.states[-1].entries) :]]
                second.write(sizes, sync=False)
            check_recovered(second, images(second.disk, 1))
            for _ in range(3):
                second.write([40000])
            check_recovered(second, images(second.disk, 0))


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_a_killed_process_left_in_memory_is_durable_once_it_is_recovered(name: str) -> None:
    """kill -9, a new process that acknowledges what it finds, and then the power fails."""
    for life in lives(SCRIPTS[name]):
        log = Log()
        wal, hard_state = open_log(life.disk, log)
        number = life.check(log, hard_state)
        assert number >= len(life.states) - 2, "all that was written is still in memory"
        life.acknowledged = number
        check_recovered(life, images(life.disk, 1))
        second = life.after(life.disk, number)
        second.wal = wal
        second.write([100])
        check_recovered(second, images(life.disk, 0))


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("name", SCRIPTS)
def test_an_error_anywhere_loses_nothing_acknowledged(name: str, code: int) -> None:
    """One operation fails, once; the process ends; whatever it had answered is there, for it and after a power cut."""
    for number in range(1, operations_of(SCRIPTS[name]) + 1):
        life = Life(SimulatedDisk(1))
        life.disk.hook = fail_at(number, code)
        with suppress(OSError, WalFailed, WalFull):
            SCRIPTS[name](life)
        assert life.disk.operations >= number
        life.disk.hook = None
        check_recovered(life, images(life.disk, 1))
        log = Log()
        wal, hard_state = open_log(life.disk, log)
        second = life.after(life.disk, life.check(log, hard_state))
        second.wal = wal
        second.write([100, 40000])
        check_recovered(second, images(life.disk, 0))


@given(st.integers(0, 2**32))
def test_many_lives(seed: int) -> None:
    """Random writes, truncations, compactions and power cuts, also right after a recovery, life after life."""
    draw = random.Random(seed)
    life = Life(SimulatedDisk(seed))
    for _ in range(draw.randrange(2, 8)):
        life.disk.hook = cut_before(life.disk.operations + draw.choice((4, 15, 60)))
        with suppress(PowerCut):
            if life.wal is None:
                life.open()
            for _ in range(draw.randrange(30)):
                random_step(life, draw)
        life.disk.hook = None
        outcome = draw.choice(list(Outcome))
        disk = life.disk.crash(outcome, draw.getrandbits(32))
        if draw.random() < 0.3:
            disk.hook = cut_before(draw.randrange(1, 8))
            with suppress(PowerCut):
                open_log(disk, Log())
            disk.hook = None
            disk = disk.crash(draw.choice(list(Outcome)), draw.getrandbits(32))
        log = Log()
        wal, hard_state = open_log(disk, log)
        life = life.after(disk, life.check(log, hard_state))
        life.wal = wal


def random_step(life: Life, draw: random.Random) -> None:
    entries = len(life.states[-1].entries)
    commit = life.states[-1].hard_state.commit
    match draw.randrange(12):
        case 0:
            assert life.wal is not None
            life.prepare()
            life.wal.vouch()
        case 1:
            life.compact(draw.randrange(commit + 1))
        case 2 | 3:
            life.write([], sync=draw.random() < 0.5)
        case 4:
            life.write(
                [draw.choice((5, 5000, 20000))], back=draw.randrange(entries - commit + 1), sync=draw.random() < 0.5
            )
        case 5:
            life.write([SEGMENT_BYTES], sync=draw.random() < 0.5)
        case _:
            # Few sizes, so that batches of different lives end at the same places.
            life.write([draw.choice((20, 5000, 9000))] * draw.randrange(1, 3), sync=draw.random() < 0.6)


def damaged_images(life: Life, draw: random.Random, count: int) -> Iterator[SimulatedDisk]:
    """Yield the disk with one thing wrong: a bit, a sector of zeros, a sector in the wrong place or gone stale."""
    names = [name for name in life.disk.list_directory(DIRECTORY) if name.endswith(".wal")]
    for _ in range(count):
        disk = life.disk.copy()
        path = f"{DIRECTORY}/{draw.choice(names)}"
        used = len(disk.contents(path).rstrip(b"\0"))
        sector = draw.randrange(used // 512 + 1) * 512
        match draw.randrange(6):
            case 0:
                disk.damage(path, sector, bytes(512))
            case 1:
                other = draw.randrange(used // 512 + 1) * 512
                disk.damage(path, sector, disk.contents(path)[other : other + 512])
            case 2:
                disk.damage(path, sector, draw.randbytes(512))
            case _:
                disk.flip(path, draw.randrange(used * 8))
        yield disk


@pytest.mark.parametrize("closed", [True, False])
def test_damage_is_never_taken_for_data(closed: bool) -> None:
    """After a clean end, damage is noticed or harmless. Else only the last sync can seem never to have happened."""
    life = Life(SimulatedDisk(2))
    life.open()
    life.prepare()
    for number in range(14):
        life.write([8000, 10, 3600], back=number % 3 and 1, sync=number % 3 != 1)
    life.compact(8)
    for _ in range(6):
        life.write([12000, 10])
    assert life.wal is not None
    if closed:
        life.wal.close()
    else:
        life.acknowledged -= 1  # Nothing was written after its sync, so nothing vouches for it yet.
    refused = 0
    for disk in damaged_images(life, random.Random(3), 600):
        log = Log()
        try:
            _, hard_state = open_log(disk, log)
        except WalCorrupt:
            refused += 1
        else:
            life.check(log, hard_state)
    assert refused > 400


def test_a_missing_segment_is_damage() -> None:
    life = Life(SimulatedDisk(2))
    compacts(life)
    names = [name for name in life.disk.list_directory(DIRECTORY) if name.endswith(".wal")]
    assert len(names) >= 3
    for name in names[:-1]:
        disk = life.disk.copy()
        disk.unlink(f"{DIRECTORY}/{name}")
        with pytest.raises(WalCorrupt, match="is missing"):
            open_log(disk, Log())
