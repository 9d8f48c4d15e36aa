"""Damage anywhere in a node's log: noticed or harmless, and what is left is what the log once was, in a new term."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest

from smtpraft.fastlog import ENTRY_NORMAL, Log, encode_entries
from smtpraft.storage import HardState, Recovery, Wal, WalCorrupt
from smtpraft.storage.healing import DAMAGED_SUFFIX
from smtpraft.storage.promises import BEHIND_MAX, SLOT_BYTES, Promise, Promises, decode_promise, encode_promise
from smtpraft.storage.simdisk import Operation, Outcome, PowerCut, SimulatedDisk
from smtpraft.storage.spares import LOST_SUFFIX

CLUSTER = b"0123456789abcdef"
SEGMENT_BYTES = 64 * 1024
PAGE = 4096
PLACES = 400


def open_wal(disk: SimulatedDisk, log: Log | None = None, *, heal: bool = True) -> tuple[Wal, Recovery]:
    return Wal.open(
        disk,
        "/data/wal",
        cluster_id=CLUSTER,
        node_id="n1",
        log=log if log is not None else Log(),
        segment_bytes=SEGMENT_BYTES,
        background=False,
        promises="/data",
        heal=heal,
    )


def entry(index: int, term: int, size: int) -> bytes:
    return encode_entries(term, index, 0, ENTRY_NORMAL, [bytes([index % 251]) * size])


@dataclass
class Past:
    """What a log was after each of its batches."""

    disk: SimulatedDisk
    terms: list[int] = field(default_factory=list)
    """Of the entries 1 to n."""
    versions: set[tuple[int, ...]] = field(default_factory=set)
    hard_state: HardState = field(default_factory=HardState)
    first_index: int = 1
    stale: dict[str, bytes] = field(default_factory=dict)
    """What the files held some time before the end."""


def live(seed: int) -> Past:
    """Write a random log: batches of all sizes, votes, replaced suffixes, rolls, compactions; end in good order."""
    random = Random(seed)
    disk = SimulatedDisk(seed)
    disk.make_directory("/data")
    wal, _ = open_wal(disk)
    past = Past(disk, versions={()})
    terms, term, commit = past.terms, 1, 0
    for step in range(random.randint(20, 60)):
        if random.random() < 0.15:
            term += random.randint(1, 2)
            wal.write([], 0, 0, HardState(term, random.choice(("", "n1", "n2")), commit))
        elif random.random() < 0.1 and len(terms) > commit and terms[-1] < term:
            del terms[random.randint(commit, len(terms) - 1) :]
            terms.append(term)
            wal.write([entry(len(terms), term, 100)], len(terms), len(terms), HardState(term, "n2", commit))
        else:
            first = len(terms) + 1
            sizes = [random.choice((10, 100, 3000, 9000)) for _ in range(random.randint(1, 4))]
            terms += [term] * len(sizes)
            block = b"".join(entry(first + number, term, size) for number, size in enumerate(sizes))
            wal.write([block], first, len(terms), HardState(term, "n2", commit), random.random() < 0.9)
        past.versions.add(tuple(terms))
        commit = random.randint(commit, len(terms))
        if random.random() < 0.05:
            wal.compact(commit)
        if step == 10:
            past.stale = {path: disk.contents(path) for path in files(disk)}
    wal.write([], 0, 0, HardState(term, "n2", commit))
    past.hard_state = HardState(term, "n2", commit)
    past.first_index = wal.first_index
    wal.close()
    past.disk = disk.copy()
    return past


def files(disk: SimulatedDisk) -> list[str]:
    paths = [f"/data/wal/{name}" for name in disk.list_directory("/data/wal") if name.endswith(".wal")]
    return [*paths, "/data/promises"]


def flip(past: Past, path: str, random: Random) -> None:
    past.disk.flip(path, random.randrange(8 * len(past.disk.contents(path))))


def zero_pages(past: Past, path: str, random: Random) -> None:
    pages = len(past.disk.contents(path)) // PAGE
    past.disk.damage(path, random.randrange(pages) * PAGE, bytes(PAGE))


def swap_pages(past: Past, path: str, random: Random) -> None:
    contents = past.disk.contents(path)
    one, other = (random.randrange(len(contents) // PAGE) * PAGE for _ in range(2))
    past.disk.damage(path, one, contents[other : other + PAGE])
    past.disk.damage(path, other, contents[one : one + PAGE])


def stale_page(past: Past, path: str, random: Random) -> None:
    """A write that the disk confirmed and never did."""
    old = past.stale.get(path) if path != "/data/promises" else None
    if old is not None:
        page = random.randrange(len(old) // PAGE) * PAGE
        past.disk.damage(path, page, old[page : page + PAGE])


def garbage(past: Past, path: str, random: Random) -> None:
    size = len(past.disk.contents(path))
    start = random.randrange(size)
    past.disk.damage(path, start, random.randbytes(min(size - start, random.randint(1, 20_000))))


def truncate(past: Past, path: str, random: Random) -> None:
    contents = past.disk.contents(path)
    past.disk.unlink(path)
    file = past.disk.create(path)
    file.pwritev([contents[: random.randrange(len(contents))]], 0)
    file.close()


def delete(past: Past, path: str, random: Random) -> None:
    past.disk.unlink(path)


DAMAGES: list[Callable[[Past, str, Random], None]] = [
    flip, flip, zero_pages, swap_pages, stale_page, garbage, truncate, delete,
]  # fmt: skip


def check(past: Past, log: Log, recovery: Recovery) -> str:
    """What a node may believe of what it is shown."""
    last = log.last_index
    terms = tuple(log.term(index) for index in range(log.prev_index, last + 1))
    for index, _, _, _, payload in log.entries(log.first_index, last) if last > log.prev_index else ():
        assert payload[:1] == bytes([index % 251])
    if not recovery.abstain_term:
        # Nothing is lost: not an entry, not a vote.
        assert last == len(past.terms)
        assert (recovery.hard_state.term, recovery.hard_state.vote) == (past.hard_state.term, past.hard_state.vote)
        assert terms[1:] == tuple(past.terms[log.prev_index :])
        return "whole"
    assert recovery.abstain_term >= past.hard_state.term
    assert recovery.hard_state.term > past.hard_state.term
    assert recovery.hard_state.vote == ""
    assert log.prev_index <= recovery.hard_state.commit <= max(past.hard_state.commit, log.prev_index)
    if log.prev_index:
        assert terms[0] == past.terms[log.prev_index - 1]
    version = (*past.terms[: log.prev_index], *terms[1:])
    assert any(version == each[: len(version)] for each in past.versions), "the log was never like this"
    assert version[: recovery.hard_state.commit] == tuple(past.terms[: recovery.hard_state.commit])
    return "healed"


@pytest.mark.parametrize("seed", range(0, PLACES, 50))
def test_damage_anywhere_is_harmless_or_noticed(seed: int) -> None:
    """One place in one file: nothing is taken for granted that is gone, and no term is voted in twice."""
    seen: dict[str, int] = {}
    for each in range(seed, seed + 50):
        random = Random(each)
        past = live(each)
        path = random.choice(files(past.disk))
        random.choice(DAMAGES)(past, path, random)
        for life in range(2):  # What was decided once holds in the next life.
            log = Log()
            wal, recovery = open_wal(past.disk, log)
            verdict = check(past, log, recovery)
            assert (recovery.damage is not None) == (verdict == "healed" and life == 0)
            wal.close()
            past.disk = past.disk.crash(Outcome.NOTHING)
        seen[verdict] = seen.get(verdict, 0) + 1
    assert seen["healed"] > 5
    assert seen["whole"] > 5


@pytest.mark.parametrize("seed", range(8))
def test_a_crash_while_healing_forgets_nothing_that_matters(seed: int) -> None:
    """At every operation of the healing in turn: the next start finds a log that is as sound, and still abstains."""
    random = Random(seed)
    past = live(seed)
    path = files(past.disk)[random.randrange(len(files(past.disk)) - 1)]
    random.choice((delete, garbage, truncate))(past, path, random)
    open_wal(past.disk.copy())
    for number in range(1, 60):
        disk = past.disk.copy()

        def cut(operation: Operation, number: int = number) -> None:
            if operation.number == number:
                raise PowerCut

        disk.hook = cut
        try:
            open_wal(disk)
        except PowerCut:
            log = Log()
            _, recovery = open_wal(disk.crash(random.choice(tuple(Outcome)), number), log)
            check(past, log, recovery)
        else:
            break
    else:
        pytest.fail("the healing does not end")


def damaged(seed: int = 3) -> Past:
    """A log with a bad page in the middle."""
    past = live(seed)
    path = files(past.disk)[0]
    past.disk.damage(path, 2 * PAGE, bytes(PAGE))
    return past


def test_without_a_second_copy_of_the_vote_a_damaged_log_is_refused() -> None:
    """Nobody can tell in which terms the node voted."""
    past = damaged()
    past.disk.unlink("/data/promises")
    with pytest.raises(WalCorrupt, match="is damaged"):
        open_wal(past.disk)


def test_a_damaged_log_is_refused_unchanged_where_nobody_could_help() -> None:
    past = damaged()
    before = {path: past.disk.contents(path) for path in files(past.disk)}
    with pytest.raises(WalCorrupt):
        open_wal(past.disk, heal=False)
    assert {path: past.disk.contents(path) for path in files(past.disk)} == before
    assert past.disk.open_files == 0


def test_what_is_put_aside_stays_until_the_lost_is_back() -> None:
    past = damaged()
    segments = len(files(past.disk)) - 1
    wal, recovery = open_wal(past.disk)
    assert recovery.damage is not None
    names = past.disk.list_directory("/data/wal")
    assert sum(name.endswith(LOST_SUFFIX) for name in names) == segments
    wal.close()
    wal, recovery = open_wal(past.disk)
    assert recovery.damage is None
    assert recovery.abstain_term
    wal.abstained()
    wal.close()
    wal, recovery = open_wal(past.disk)
    assert not recovery.abstain_term
    names = past.disk.list_directory("/data/wal")
    assert [name.endswith(DAMAGED_SUFFIX) for name in names if not name.endswith((".wal", ".spare"))] == [True]


def test_a_vote_that_a_torn_tail_took_along_still_counts() -> None:
    """Raft Figure 2: the answer may have left."""
    past = live(1)
    wal, _ = open_wal(past.disk)
    wal.write([], 0, 0, HardState(past.hard_state.term + 5, "n3", past.hard_state.commit))
    path = files(past.disk)[-2]
    end = wal._segments[-1].end_offset - PAGE
    past.disk.damage(path, end, bytes(PAGE))
    _, recovery = open_wal(past.disk.copy())
    assert (recovery.hard_state.term, recovery.hard_state.vote) == (past.hard_state.term + 5, "n3")
    assert not recovery.abstain_term


def test_a_slot_of_promises_comes_back_as_it_was_written() -> None:
    promise = Promise(7, "node-2", 5, 3, 100, 6, 4, 33, 9)
    slot = encode_promise(promise)
    assert decode_promise(slot) == promise
    assert decode_promise(slot[:20] + b"?" + slot[21:]) is None


def test_one_bad_slot_of_promises_takes_nothing_along() -> None:
    disk = SimulatedDisk()
    disk.make_directory("/data")
    Promises.open(disk, "/data").write(Promise(3, "n2"))
    for slot in (0, 1):
        damaged_disk = disk.copy()
        damaged_disk.damage("/data/promises", slot * PAGE + 30, b"rot")
        promise = Promises.open(damaged_disk, "/data").current
        assert promise is not None
        assert (promise.term, promise.vote) == (3, "n2")


def test_a_vote_is_promised_in_one_slot_before_it_is_told_and_in_the_other_soon_after() -> None:
    """Others wait for it, so it costs two syncs, not three; an idle log, or a busy one soon, writes the other slot."""
    for busy in (False, True):
        disk = SimulatedDisk()
        wal, _ = open_wal(disk)
        wal.write([], 0, 0, HardState(1, "n1", 0))
        synced: list[str] = []

        def hook(operation: Operation, synced: list[str] = synced) -> None:
            if operation.kind == "sync":
                synced.append(operation.path)

        disk.hook = hook
        wal.write([], 0, 0, HardState(2, "n3", 0))
        assert [path.rpartition("/")[2] == "promises" for path in synced] == [True, False]
        for _ in range(BEHIND_MAX if busy else 0):
            wal.write([], 0, 0, HardState(2, "n3", 0))
        if not busy:
            wal.vouch()
        content = disk.contents("/data/promises")
        slots = [decode_promise(content[at : at + SLOT_BYTES]) for at in (0, SLOT_BYTES)]
        assert [slot and (slot.term, slot.vote) for slot in slots] == [(2, "n3")] * 2
        disk.hook = None
        wal.close()


def test_a_vote_that_a_power_cut_left_to_the_promises_alone_is_in_the_log_too_after_the_next_start() -> None:
    """The same candidate asks again, and is answered at once: from then on nothing may take that vote along."""
    disk = SimulatedDisk(1)
    disk.make_directory("/data")
    wal, _ = open_wal(disk)
    wal.write([entry(1, 1, 10)], 1, 1, HardState(1, "", 0))

    def cut(operation: Operation) -> None:
        if operation.kind == "write" and operation.path.endswith(".wal"):
            raise PowerCut

    disk.hook = cut
    with pytest.raises(PowerCut):
        wal.write([], 0, 0, HardState(2, "n2", 0))
    disk = disk.crash(Outcome.NOTHING)
    _, recovery = open_wal(disk)
    assert recovery.hard_state == HardState(2, "n2", 0)

    disk = disk.crash(Outcome.NOTHING)
    disk.lose("/data/promises")
    _, recovery = open_wal(disk)
    assert recovery.hard_state == HardState(2, "n2", 0)


def test_a_slot_of_promises_that_is_behind_is_made_good_at_the_next_start() -> None:
    disk = SimulatedDisk()
    wal, _ = open_wal(disk)
    wal.write([], 0, 0, HardState(2, "n3", 0))
    disk = disk.crash(Outcome.NOTHING)
    wal, recovery = open_wal(disk)
    assert (recovery.hard_state.term, recovery.hard_state.vote) == (2, "n3")
    wal.close()
    content = disk.contents("/data/promises")
    assert {
        (slot.term, slot.vote) for at in (0, SLOT_BYTES) if (slot := decode_promise(content[at : at + SLOT_BYTES]))
    } == {(2, "n3")}
