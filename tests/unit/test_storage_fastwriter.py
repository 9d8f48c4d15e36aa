"""The compiled writer beside the plain one: the same bytes on a real disk, the same behaviour when things go wrong."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

import pytest

from smtpraft.errors import Stopped
from smtpraft.fastlog import ENTRY_NORMAL, Log
from smtpraft.storage import HardState, RealDisk, Wal, WalFailed, WalWriter, begin_writing
from smtpraft.storage.fastwriter import COMPILED, CompiledWalWriter
from smtpraft.storage.promises import BEHIND_MAX, SLOT_BYTES, decode_promise

CLUSTER = b"0123456789abcdef"
SEGMENT_BYTES = 64 * 1024
WAIT_S = 10

pytestmark = pytest.mark.skipif(not COMPILED, reason="no compiled half")


async def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(WAIT_S * 5000):
        if condition():
            return
        await asyncio.sleep(0.0002)
    raise AssertionError("in vain")


class SeededDisk(RealDisk):
    """A real disk whose random numbers are known, so that two logs can be compared."""

    def __init__(self) -> None:
        self._random = random.Random(1)

    def random_u64(self) -> int:
        return self._random.getrandbits(64)


class Bench:
    """A log in a directory and its writer, as the loop sees them."""

    def __init__(self, directory: Path, *, plain: bool = False, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.segment_bytes = segment_bytes
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.log = Log()
        self.disk = SeededDisk()
        self.wal = self.open(self.log)
        self.failures: list[BaseException] = []
        loop = asyncio.get_running_loop()
        if plain:
            self.writer = WalWriter(self.wal, deliver=loop.call_soon_threadsafe, on_failure=self.failures.append)
        else:
            self.writer = begin_writing(self.wal, loop, on_failure=self.failures.append)
            assert isinstance(self.writer, CompiledWalWriter)
        self.done: list[int] = []
        self.submitted = 0

    def open(self, log: Log) -> Wal:
        path = str(self.directory)
        wal, _ = Wal.open(
            self.disk,
            path,
            cluster_id=CLUSTER,
            node_id="node-1",
            log=log,
            segment_bytes=self.segment_bytes,
            background=False,
            promises=path,
        )
        return wal

    def submit(self, *payloads: bytes, term: int = 1, hard_state: HardState | None = None, sync: bool = True) -> None:
        self.submitted += 1
        number = self.submitted
        first = self.log.last_index + 1
        spans = [memoryview(self.log.append(term, 0, ENTRY_NORMAL, payloads))] if payloads else []
        last = self.log.last_index if payloads else 0
        self.writer.submit(spans, first if last else 0, last, hard_state, sync, lambda: self.done.append(number))

    def job(self, job: Callable[[], object]) -> None:
        self.submitted += 1
        number = self.submitted

        def run() -> None:
            job()

        self.writer.submit_job(run, lambda: self.done.append(number))

    async def settle(self) -> None:
        await eventually(lambda: len(self.done) >= self.submitted)
        assert self.done == list(range(1, self.submitted + 1))

    async def close(self) -> None:
        await asyncio.to_thread(self.writer.close)
        await asyncio.sleep(0.01)
        self.wal.close()

    def contents(self) -> dict[str, bytes]:
        """What was promised counts too: whoever writes the log, it is on its way to both slots by the same batches."""
        paths = [*sorted(self.directory.glob("*.wal")), self.directory / "promises"]
        return {path.name: path.read_bytes() for path in paths}


@asynccontextmanager
async def bench(directory: Path, *, plain: bool = False, segment_bytes: int = SEGMENT_BYTES) -> AsyncIterator[Bench]:
    made = Bench(directory, plain=plain, segment_bytes=segment_bytes)
    try:
        yield made
    finally:
        await made.close()


async def live(made: Bench, seed: int) -> None:
    """A life of a log, one submission at a time: entries, truncations, terms, votes, new segments, compactions."""
    chance = random.Random(seed)
    term, vote = 1, ""
    for _ in range(120):
        match chance.randrange(8):
            case 0:
                term += 1
                vote = chance.choice(["", "node-1", "node-22"])
                made.submit(hard_state=HardState(term, vote, made.log.last_index))
            case 1 if made.log.last_index > made.wal.first_index + 3:
                made.log.truncate(made.log.last_index - chance.randrange(3))
                made.submit(b"instead", term=term, hard_state=HardState(term, vote, made.wal.first_index))
            case 2:
                made.submit(sync=chance.random() < 0.5)
            case 3 if chance.random() < 0.3:
                await asyncio.to_thread(made.wal.compact, made.log.last_index - 2)
            case 4:
                made.job(made.wal.vouch)
            case _:
                payloads = [chance.randbytes(chance.choice([1, 300, 4000])) for _ in range(chance.randrange(1, 5))]
                state = HardState(term, vote, 0) if chance.random() < 0.5 else None
                made.submit(*payloads, term=term, hard_state=state, sync=chance.random() < 0.9)
        await made.settle()


@pytest.mark.parametrize("seed", range(12))
async def test_both_writers_leave_the_same_bytes(tmp_path: Path, seed: int) -> None:
    found = {}
    for name in ("compiled", "plain"):
        async with bench(tmp_path / name, plain=name == "plain") as made:
            await live(made, seed)
            assert not made.failures
            first = made.wal.first_index
            held = made.wal.read(first, made.log.last_index, made.log) if made.log.last_index >= first else b""
            stats = made.wal.stats
            counted = (stats.batches, stats.entries, stats.bytes_written, stats.syncs, stats.batch_counts, stats.rolls)
        found[name] = (made.contents(), held, counted)
        log = Log()
        made.open(log).close()
        assert log.last_index == made.log.last_index
    assert found["compiled"] == found["plain"]


async def test_a_promise_reaches_its_second_slot_though_the_log_is_never_idle(tmp_path: Path) -> None:
    async with bench(tmp_path, segment_bytes=1024 * 1024) as made:  # no new segment either, which would write both
        made.submit(b"a", hard_state=HardState(7, "node-1", 0))
        await made.settle()
        slots = [(tmp_path / "promises").read_bytes()[at : at + SLOT_BYTES] for at in (0, SLOT_BYTES)]
        assert slots[0] != slots[1]
        for _ in range(BEHIND_MAX + 1):
            made.submit(b"b")
            await made.settle()
        slots = [(tmp_path / "promises").read_bytes()[at : at + SLOT_BYTES] for at in (0, SLOT_BYTES)]
        assert slots[0] == slots[1]
        written = decode_promise(slots[0])
        assert written is not None
        assert (written.term, written.vote) == (7, "node-1")


async def test_a_disk_that_finishes_one_thing_after_another_does_not_hang(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        ended: list[float] = []

        def take_time() -> None:
            threading.Event().wait(0.01)
            ended.append(monotonic())

        for _ in range(12):
            made.job(take_time)
        while len(ended) < 12:
            before = ended[-2] if len(ended) > 1 else 0.0  # what came before the last is done for sure
            age_s = made.writer.write_age_s()
            assert age_s <= monotonic() - before
            await asyncio.sleep(0.001)
        await made.settle()
        assert made.writer.write_age_s() == 0


async def test_what_comes_in_meanwhile_goes_out_together_and_all_of_it_is_there(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        for turn in range(300):
            made.submit(b"%d" % turn, os.urandom(turn * 10), hard_state=HardState(1 + turn // 100, "", turn))
            if turn % 100 == 50:
                made.log.truncate(made.log.last_index)
            if turn % 3 == 0:
                await asyncio.sleep(0)
            if turn == 200:
                await made.settle()
                await asyncio.to_thread(made.wal.compact, made.log.last_index - 20)
        await made.settle()
        assert made.wal.stats.syncs < 300
        assert made.writer.pending_bytes == 0
        assert made.writer.write_age_s() == 0
        first, last = made.wal.first_index, made.log.last_index
        assert first > 1
        held = made.wal.read(first, last, made.log)
    log = Log()
    again = made.open(log)
    assert (again.first_index, log.last_index) == (first, last)
    assert again.read(first, last, log) == held
    again.close()


async def test_compaction_beside_writing_loses_nothing(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        for turn in range(60):
            for _ in range(5):
                made.submit(os.urandom(2000))
            await asyncio.gather(
                asyncio.to_thread(made.wal.compact, max(1, made.wal.last_index - 30)),
                asyncio.to_thread(made.wal.vouch),
                made.settle(),
            )
            assert made.wal.last_index == made.log.last_index == 5 * (turn + 1)
        assert made.wal.stats.rolls > 5
        last = made.log.last_index
    log = Log()
    made.open(log).close()
    assert log.last_index == last


async def test_an_idle_log_vouches_for_its_last_batch(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        made.submit(b"a")
        await made.settle()
        before = made.wal.stats.batches
        await eventually(lambda: made.wal.stats.batches > before)
        await asyncio.sleep(0.7)
        assert made.wal.stats.batches == before + 1, "once is enough"


@pytest.mark.parametrize(("device", "action"), [("/dev/full", "write"), ("/dev/null", "sync")])
async def test_a_disk_that_fails_ends_the_writer(tmp_path: Path, device: str, action: str) -> None:
    made = Bench(tmp_path)
    made.submit(b"a")
    await made.settle()
    broken = os.open(device, os.O_RDWR)
    os.dup2(broken, made.wal._segments[-1].file.fileno())  # type: ignore[attr-defined]
    os.close(broken)
    made.submit(b"b")
    made.submit(b"c")
    await eventually(lambda: bool(made.failures))
    (failure,) = made.failures
    assert isinstance(failure, WalFailed)
    assert action in str(failure)
    assert made.done == [1]
    with pytest.raises(WalFailed):
        made.wal.write((), 0, 0)
    await asyncio.to_thread(made.writer.close)
    with pytest.raises(Stopped):
        made.submit(b"d")
    made.wal.close()


async def test_entries_that_do_not_fit_are_an_error_and_nothing_is_written(tmp_path: Path) -> None:
    made = Bench(tmp_path)
    made.submit(b"a")
    await made.settle()
    other = Log()
    other.restore(7, 1)
    made.writer.submit(
        [memoryview(other.append(1, 0, ENTRY_NORMAL, [b"x"]))], 8, 8, None, True, lambda: made.done.append(0)
    )
    await eventually(lambda: bool(made.failures))
    assert "does not go on the log" in str(made.failures[0])
    assert made.done == [1]
    await asyncio.to_thread(made.writer.close)
    made.wal.close()


async def test_closing_writes_what_was_submitted_and_takes_nothing_more(tmp_path: Path) -> None:
    made = Bench(tmp_path)
    for _ in range(50):
        made.submit(b"a")
    await asyncio.to_thread(made.writer.close)
    await asyncio.sleep(0.01)
    assert made.done == list(range(1, 51))
    with pytest.raises(Stopped):
        made.submit(b"b")
    with pytest.raises(Stopped):
        made.job(lambda: None)
    made.wal.close()
