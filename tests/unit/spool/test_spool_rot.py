"""The queue's database on a disk that changes what is at rest: what comes out is what was written, or nothing does."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from random import Random

import pytest

from smtpraft.fastlog import Compacted
from smtpraft.spool import Result
from smtpraft.spool.errors import SpoolDamaged, SpoolUnusable
from smtpraft.spool.files import noted_damage
from smtpraft.spool.machine import SpoolMachine
from smtpraft.spool.scrub import START, Place
from smtpraft.spool.types import BodyPart, Envelope, RecipientState, number_of

from .journal import A, B, Bench, replay

PLACES = 80
PAGE = 4096
BEHIND = 10


def fill(bench: Bench) -> None:
    """Messages in all states, bodies copied, keys."""
    bench.up(A)
    bench.up(B)
    for number in range(60):
        mail = Envelope(f"sender-{number}@example.org", (f"user-{number}@example.net", f"other-{number}@example.net"))
        message = bench.accept(mail, b"Subject: %d\r\n\r\n" % number + b"x" * 300, node=(A, B)[number % 2])
        if number % 3 == 0:
            bench.outcome(message, Result(0, 1, RecipientState.DEFERRED, 60_000, "4.2.0", "later"))
        if number % 7 == 0:
            bench.outcome(message, Result(0, 2, RecipientState.DELIVERED), Result(1, 1, RecipientState.DELIVERED))
    bench.down(B, A)
    bench.machine.before_compaction(bench.machine.digest_now()[1] - BEHIND)


def everything(machine: SpoolMachine) -> tuple[object, ...]:
    """Return all that deliveries and operators are told."""
    infos = machine.reader.page(0, 10**6)
    parts = [BodyPart(number_of(info.id), 0, 0) for info in infos]
    place: Place | None = START
    while place is not None:
        place, _ = machine.reader.scrub(place)
    return infos, machine.reader.bodies(parts), machine.counts(), machine.digest_now()


def left(directory: Path, how: str) -> tuple[Bench, tuple[object, ...]]:
    """Leave a database in `directory`/image: closed, killed, or killed after its log was moved into the file."""
    bench = Bench(str(directory / "queue.db"))
    fill(bench)
    told = everything(bench.machine)
    if how == "closed":
        bench.machine.close()
    if how == "moved":
        bench.machine._store.checkpoint()
    (directory / "image").mkdir()
    for file in directory.glob("queue.db*"):
        if not file.name.endswith("-shm"):
            shutil.copy(file, directory / "image")
    if how != "closed":
        bench.machine.close()
    return bench, told


def damage(data: bytearray, random: Random) -> None:
    """A flipped bit, a page of zeros, or two pages in each other's place."""
    pages = len(data) // PAGE
    match random.randrange(5 if pages > 1 else 3):
        case 0 | 1 | 2:
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        case 3:
            at = random.randrange(pages) * PAGE
            data[at : at + PAGE] = bytes(PAGE)
        case _:
            one, other = (slice(page * PAGE, page * PAGE + PAGE) for page in random.sample(range(pages), 2))
            data[one], data[other] = data[other], data[one]


@pytest.mark.parametrize("how", ["closed", "killed", "moved"])
def test_what_is_read_is_what_was_written_or_nothing(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random places, without the check of small files at a start. What the log has more is applied again."""
    monkeypatch.setattr("smtpraft.spool.store.CHECK_BYTES_MAX", 0)
    bench, told = left(tmp_path, how)
    files = {file.name: file.read_bytes() for file in sorted((tmp_path / "image").iterdir())}
    path = tmp_path / "rot" / "queue.db"
    found = passed = 0
    for seed in range(PLACES):
        random = Random(seed)
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir()
        victim = random.choice(sorted(name for name, data in files.items() if data))
        for name, data in files.items():
            changed = bytearray(data)
            if name == victim:
                damage(changed, random)
            (path.parent / name).write_bytes(changed)
        machine = SpoolMachine(str(path), A)
        machine.read_entry = bench.journal.read_entry
        try:
            machine.open()
            replay(machine, bench.journal.items)
            machine.before_compaction(len(bench.journal.items) - BEHIND)
            assert everything(machine) == told, f"seed {seed}"
            passed += 1
        except SpoolUnusable:
            found += 1
        finally:
            machine.close()
    # Behind a kill, SQLite cuts its log where it is damaged, and the cluster's log brings back the rest.
    assert how != "closed" or found > PLACES // 4, (found, passed)


def test_a_damaged_database_is_put_aside_and_built_anew(tmp_path: Path) -> None:
    bench = Bench(str(tmp_path / "queue.db"))
    fill(bench)
    told = bench.machine.digest_now()
    bench.machine.close()
    path = tmp_path / "queue.db"
    data = bytearray(path.read_bytes())
    data[100:4096] = bytes(3996)
    path.write_bytes(data)
    machine = SpoolMachine(str(path), A)
    machine.read_entry = bench.journal.read_entry
    with pytest.raises(SpoolDamaged) as caught:
        machine.open()
    caught.value.put_aside()
    assert machine.open().index == 0
    replay(machine, bench.journal.items)
    assert machine.digest_now() == told
    assert Path(f"{path}.damaged").read_bytes() == data
    machine.close()


def test_damage_that_was_noted_is_not_forgotten(tmp_path: Path) -> None:
    """The page that a running node choked on may be the one that no start looks at."""
    path = str(tmp_path / "queue.db")
    bench = Bench(path)
    bench.machine.close()
    SpoolDamaged(path, "found by the scrub").note()
    for _ in range(2):
        with pytest.raises(SpoolDamaged, match="found by the scrub") as caught:
            bench.machine.open()
    os.rename(path, f"{path}.damaged")  # a crash in the middle of putting it aside
    with pytest.raises(SpoolDamaged):
        bench.machine.open()
    caught.value.put_aside()
    assert noted_damage(path) is None
    assert bench.machine.open().index == 0
    bench.machine.close()


def test_a_snapshot_is_not_made_of_a_damaged_database(tmp_path: Path) -> None:
    """Nor is it given to one who lost his own: he would lose it again."""
    bench = Bench(str(tmp_path / "queue.db"))
    fill(bench)
    told: list[SpoolDamaged] = []
    bench.machine.on_damage = told.append
    bench.machine._store._cursor.execute(
        "UPDATE recipients SET address = 'else@example.com' WHERE message = (SELECT max(id) FROM messages)"
    )
    with pytest.raises(SpoolDamaged):
        bench.machine.write_snapshot(str(tmp_path / "copy"))
    assert len(told) == 1
    bench.machine.close()


def test_a_row_that_is_gone_is_missed(tmp_path: Path) -> None:
    bench = Bench(str(tmp_path / "queue.db"))
    fill(bench)
    bench.machine._store._cursor.execute("DELETE FROM messages WHERE id = (SELECT max(id) FROM messages)")
    with pytest.raises(SpoolDamaged, match="should have"):
        everything(bench.machine)
    bench.machine.close()


def test_a_message_that_moved_is_what_was_written(tmp_path: Path) -> None:
    """One statement gives all messages of a node to others, sums and all."""
    bench = Bench(str(tmp_path / "queue.db"))
    for node in (A, B):
        bench.up(node)
    for _ in range(5):
        bench.accept(node=B)
    bench.down(B, A)
    bench.machine.close()
    bench.machine.open()
    assert {info.owner for info in bench.queue()} == {A}
    bench.machine.close()


def test_bodies_that_neither_the_log_nor_a_copy_has_are_damage(tmp_path: Path) -> None:
    """The log forgets only what was copied and synced. Whose copy was lost has others to get it from."""
    bench = Bench(str(tmp_path / "queue.db"))
    fill(bench)
    with bench.machine._store.transaction():
        bench.machine._store.set_copied(0)
    bench.machine.close()

    def read_entry(index: int) -> bytes:
        if index < 40:
            raise Compacted(f"index {index}, the log begins at 40")
        return bench.journal.read_entry(index)

    again = SpoolMachine(str(tmp_path / "queue.db"), A)
    again.read_entry = read_entry
    assert again.open().copied_index == 5  # the first message that is left is in the sixth entry
    with pytest.raises(SpoolDamaged, match="copies of bodies in entries from"):
        again.before_compaction(again.digest_now()[1] - BEHIND)
    with pytest.raises(SpoolDamaged, match="copies of bodies in entries from"):
        again.write_snapshot(str(tmp_path / "copy"))
    again.close()
