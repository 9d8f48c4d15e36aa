"""A copy of the live database: it is the state after one index, holds every living body, and takes another's place."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import apsw
import pytest

from smtpraft.fastlog import Compacted
from smtpraft.spool import snapshot
from smtpraft.spool.client import SpoolClient
from smtpraft.spool.machine import SpoolMachine
from smtpraft.spool.reader import Reader
from smtpraft.spool.store import RotError
from smtpraft.spool.types import Changes, Recipient, delivered, number_of

from .journal import A, B, Bench, Single, tables


def installed(bench: Bench, path: Path, tmp_path: Path, node: str = "other") -> SpoolMachine:
    """Return a machine that had a state of its own and was given the snapshot at `path`."""
    machine = SpoolMachine(str(tmp_path / f"{node}.db"), B)
    machine.read_entry = bench.journal.read_entry
    machine.open()
    machine.install_snapshot(str(path))
    machine.open()
    return machine


def test_a_copy_is_the_state_with_every_living_body(bench: Bench, tmp_path: Path) -> None:
    gone = bench.accept(body=b"gone")
    old = bench.accept(body=b"copied before")
    bench.machine.before_compaction(2)
    young = bench.accept(body=b"only in the log")
    bench.outcome(gone, delivered(Recipient(0, "")))
    path = tmp_path / "copy"
    applied = bench.machine.write_snapshot(str(path))
    assert applied.index == len(bench.journal.items)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("copy")) == ["copy"]
    assert tables(str(path)) == tables(str(tmp_path / "spool.db"))
    bodies = apsw.Connection(str(path)).execute("SELECT part, content FROM bodies ORDER BY part").fetchall()
    assert bodies == [(number_of(old), b"copied before"), (number_of(young), b"only in the log")]


def test_a_copy_is_of_one_moment_while_the_machine_applies_on(bench: Bench, tmp_path: Path) -> None:
    """The applying is never held up, and what it does meanwhile is not in the copy."""
    for number in range(300):
        bench.accept(body=bytes(4000) + b"%d" % number)
    bench.machine.before_compaction(300)
    path = tmp_path / "copy"
    applied: list[int] = []
    thread = threading.Thread(target=lambda: applied.append(bench.machine.write_snapshot(str(path)).index))
    thread.start()
    while thread.is_alive():
        bench.accept(body=b"meanwhile")
    thread.join()
    (index,) = applied
    assert index < len(bench.journal.items)
    other = installed(bench, path, tmp_path)
    assert other.digest_now()[1] == index
    other.apply(bench.journal.items[index:], b"")
    assert other.digest_now() == bench.machine.digest_now()
    other.close()
    bench.machine.close()
    assert tables(str(tmp_path / "other.db")) == tables(str(tmp_path / "spool.db"))


def test_an_installed_copy_answers_for_every_body_without_the_log(bench: Bench, tmp_path: Path) -> None:
    ids = [bench.accept(body=b"body %d" % number) for number in range(5)]
    path = tmp_path / "copy"
    bench.machine.write_snapshot(str(path))
    other = installed(bench, path, tmp_path)
    bodies = other.reader.bodies([other.reader.get(number_of(each)).parts[0] for each in ids])  # type: ignore[union-attr]
    assert [bodies[number_of(each)] for each in ids] == [b"body %d" % number for number in range(5)]
    assert other.checkpoint() == 5  # and the log may be cut there
    other.close()


def test_delivery_is_told_to_read_everything_again(bench: Bench, tmp_path: Path) -> None:
    bench.accept()
    path = tmp_path / "copy"
    bench.machine.write_snapshot(str(path))
    machine = SpoolMachine(str(tmp_path / "other.db"), A)
    machine.open()
    told: list[Changes] = []
    machine.on_changes = told.append
    machine.install_snapshot(str(path))
    machine.open()
    assert told == [Changes(1, resync=True)]
    machine.close()


async def test_queries_wait_while_a_snapshot_takes_its_place(bench: Bench, tmp_path: Path) -> None:
    message = bench.accept(body=b"hello")
    path = tmp_path / "copy"
    bench.machine.write_snapshot(str(path))
    client = SpoolClient(Single(bench), bench.machine)
    bench.machine.install_snapshot(str(path))
    asking = asyncio.create_task(client.get(message, linearizable=False))
    await asyncio.sleep(0)
    bench.machine.open()
    info = await asking
    assert info is not None
    assert info.id == message


class Slow(threading.Event):
    """What a reader's thread waits for only after the machine has given its time to others."""

    def wait(self, timeout: float | None = None) -> bool:
        if threading.current_thread().name.startswith("spool-reader"):
            time.sleep(0.1)
        return super().wait(timeout)


def test_a_reader_that_is_slow_to_wait_does_not_miss_that_the_file_is_open(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has closed the file and said so; before it waits, the file is open again and to be closed once more."""
    monkeypatch.setattr(threading, "Event", Slow)
    reader = Reader(str(tmp_path / "spool.db"))

    def twice() -> None:
        reader.open()
        reader.suspend()
        reader.open()
        reader.suspend()
        reader.open()

    thread = threading.Thread(target=twice, daemon=True)
    thread.start()
    thread.join(10)
    stuck = thread.is_alive()
    if stuck:
        reader._go_on.set()  # for the test to end
        thread.join(10)
    reader.close()
    assert not stuck


def test_an_old_log_of_sqlite_is_not_taken_for_the_new_ones(bench: Bench, tmp_path: Path) -> None:
    """A process that was killed leaves its -wal file behind."""
    bench.accept(body=b"hello")
    path = tmp_path / "copy"
    bench.machine.write_snapshot(str(path))
    target = tmp_path / "other.db"
    other = SpoolMachine(str(target), B)
    other.open()
    other.apply([bench.journal.items[0]], b"")
    saved = {name: (tmp_path / name).read_bytes() for name in ("other.db", "other.db-wal")}
    other.close()
    for name, content in saved.items():
        (tmp_path / name).write_bytes(content)
    machine = SpoolMachine(str(target), B)
    machine.install_snapshot(str(path))
    assert machine.open().index == 1
    assert not path.exists()
    machine.close()
    connection = apsw.Connection(str(target))
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_body_that_the_log_has_forgotten_is_an_error_not_a_hole(bench: Bench, tmp_path: Path) -> None:
    bench.accept(body=b"hello")

    def forgotten(index: int) -> bytes:
        raise Compacted(index)

    with pytest.raises(RotError, match="copies of bodies"):
        snapshot.write_copy(str(tmp_path / "spool.db"), str(tmp_path / "copy"), forgotten)
