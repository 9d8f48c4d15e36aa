"""The same log gives the same state: whatever the batches, the memory, the restarts and the node."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import apsw
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from smtpraft.cluster.machine import Item
from smtpraft.spool import commands, queue
from smtpraft.spool.errors import SpoolFull, SpoolNewer, SpoolUnusable
from smtpraft.spool.machine import SpoolMachine
from smtpraft.spool.types import (
    Envelope,
    MessageId,
    MessageInfo,
    Outcome,
    Recipient,
    RecipientState,
    Result,
    index_of,
    message_id,
    number_of,
)
from smtpraft.types import NodeId

from .journal import NULL_SENDER, TWO, A, B, Bench, C, outcomes_command, recounted, replay, tables

NODES = (A, B, C)
ENVELOPES = (TWO, NULL_SENDER, Envelope("zoë@example.org", tuple(f"r{n}@example.net" for n in range(3)), True))
FINAL = (RecipientState.DELIVERED, RecipientState.FAILED, RecipientState.EXPIRED)

# One step of a history: what is done, by which node, and two numbers that choose among what is there.
COMMON = ("accept", "accept", "accept", "report", "report", "report", "stale", "stale", "down")
RARE = ("chunk", "long", "forget", "hold", "release", "delete", "flush", "all", "up", "down", "skipped", "nonsense")
STEP = st.tuples(st.sampled_from((*COMMON, *RARE)), st.sampled_from(NODES), st.integers(0, 1000), st.integers(0, 1000))


class Historian:
    """Writes a log as nodes would that look at what the machine has, and now and then act on old knowledge."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.seen: list[MessageInfo] = []

    def step(self, what: str, node: NodeId, one: int, two: int) -> None:
        journal, machine = self.bench.journal, self.bench.machine
        journal.stamp += (two % 7 - 2) * 400  # a new leader's clock may be behind
        machine.apply([self._item(what, node, one, two)], b"notes")
        self.seen += self.bench.queue()[-3:]

    def _item(self, what: str, owner: NodeId, one: int, two: int) -> Item:
        journal = self.bench.journal
        queued = self.bench.queue()
        chosen = queued[one % len(queued)] if queued else None
        match what:
            case "accept":
                return journal.command(commands.encode_accept(ENVELOPES[one % 3], [b"x" * (two % 50)]), owner)
            case "report" if chosen:
                return journal.command(outcomes_command(_outcome(chosen, two)), chosen.owner)
            case "stale" if self.seen:
                old = self.seen[-1 - one % min(len(self.seen), 9)]
                return journal.command(outcomes_command(_outcome(old, two)), old.owner)
            case "chunk":
                return journal.command(commands.encode_chunk(one % 3, two % 3, [b"c" * 9]), owner)
            case "long":
                accept = commands.encode_accept(
                    TWO, [b"end"], upload=one % 3, chunk_count=two % 3, chunk_bytes=two % 3 * 9
                )
                return journal.command(accept, owner)
            case "forget":
                return journal.command(commands.encode_forget_upload(one % 3), owner)
            case "hold" | "release" | "delete" | "flush":
                numbers = [number_of(info.id) for info in queued[one % 4 :: 2]]
                op = {"hold": commands.HOLD, "release": commands.RELEASE, "delete": commands.DELETE}.get(
                    what, commands.FLUSH
                )
                return journal.command(commands.encode_operator(op, numbers[:3]), owner)
            case "all":
                op = commands.OPERATOR_OPS[one % 4]
                return journal.command(commands.encode_operator(op, None, 0, two << 12, 1 + one % 5), owner)
            case "up":
                return journal.up(owner)
            case "down":
                live = [other for place, other in enumerate(NODES) if other != owner and two >> place & 1]
                return journal.down(owner, *live)
            case "nonsense":
                return journal.command(bytes([one % 12, 1, 0, 0, 0, two % 9]) + b"\x93\x01" * 4, owner)
        return journal.skipped()


def _outcome(info: MessageInfo, choice: int) -> Outcome:
    results = []
    for recipient in info.open_recipients:
        states = (*FINAL, RecipientState.DEFERRED, None)
        state = states[(choice + recipient.ordinal) % 5]
        if state is not None:
            results.append(Result(recipient.ordinal, recipient.attempts + 1, state, choice * 10, "4.0.0", "é 451"))
    if not results:
        results.append(Result(0, 1, RecipientState.DELIVERED))
    return Outcome(info.id, info.epoch, tuple(results), b"bounce" if choice % 4 else b"")


def write_history(directory: Path, steps: list[tuple[str, NodeId, int, int]]) -> Bench:
    bench = Bench(str(directory / "reference.db"))
    historian = Historian(bench)
    for step in steps:
        historian.step(*step)
    note(str(bench.machine.counts()))
    assert recounted(str(directory / "reference.db"), A).items() <= bench.machine.counts().items()
    return bench


@settings(max_examples=30)
@given(st.lists(STEP, min_size=15, max_size=80), st.lists(st.integers(1, 30), max_size=20), st.integers(0, 6))
def test_batches_and_memory_do_not_show(
    steps: list[tuple[str, NodeId, int, int]], sizes: list[int], cached: int
) -> None:
    """S1. The reference took every item alone; the others in batches, remembering little, on another node."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        directory = Path(name)
        bench = write_history(directory, steps)
        patch.setattr(queue, "CACHED_RECIPIENTS_MAX", cached)
        other = SpoolMachine(str(directory / "other.db"), B)
        other.open()
        replay(other, bench.journal.items, sizes)
        assert other.digest_now() == bench.machine.digest_now()
        assert other.counts() | {"owned": 0} == bench.machine.counts() | {"owned": 0}
        assert recounted(str(directory / "other.db"), B).items() <= other.counts().items()
        other.close()
        bench.machine.close()
        reference = tables(str(directory / "reference.db"))
        assert tables(str(directory / "other.db")) == {**reference, "meta": reference["meta"]}


@settings(max_examples=30)
@given(st.lists(STEP, min_size=15, max_size=80), st.data())
def test_a_node_that_was_killed_replays_to_the_same_state(
    steps: list[tuple[str, NodeId, int, int]], data: st.DataObject
) -> None:
    """D7: applied index and effects are of one transaction, so a restart goes on exactly where it was."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        bench = write_history(directory, steps)
        items = bench.journal.items
        path = directory / "other.db"
        machine = SpoolMachine(str(path), B)
        machine.read_entry = bench.journal.read_entry
        machine.open()
        applied = 0
        while applied < len(items):
            size = data.draw(st.integers(1, len(items) - applied), "batch")
            machine.apply(items[applied : applied + size], b"notes")
            applied += size
            match data.draw(st.sampled_from(["go on", "kill", "stop", "checkpoint", "compact"])):
                case "kill":
                    # What a killed process leaves: its files as they are, nothing closed.
                    image = directory / f"image-{applied}"
                    image.mkdir()
                    for file in directory.glob("other.db*"):
                        shutil.copy(file, image / file.name)
                    machine.close()
                    for file in directory.glob("other.db*"):
                        file.unlink()
                    for file in image.iterdir():
                        shutil.copy(file, directory / file.name)
                    machine = SpoolMachine(str(path), B)
                    machine.read_entry = bench.journal.read_entry
                    assert machine.open().index == applied
                case "stop":
                    machine.close()
                    machine = SpoolMachine(str(path), B)
                    machine.read_entry = bench.journal.read_entry
                    assert machine.open().index == applied
                case "checkpoint":
                    assert machine.checkpoint() == applied
                case "compact":
                    machine.before_compaction(data.draw(st.integers(0, applied), "to"))
        assert machine.digest_now() == bench.machine.digest_now()
        assert machine.digest() == bench.machine.digest()
        machine.close()
        bench.machine.close()
        assert tables(str(path)) == tables(str(directory / "reference.db"))


def test_digest_points_are_the_same_on_all_nodes(tmp_path: Path) -> None:
    bench = Bench(str(tmp_path / "one.db"))
    for number in range(200):
        bench.accept(node=NODES[number % 3])
    other = SpoolMachine(str(tmp_path / "two.db"), B)
    other.open()
    replay(other, bench.journal.items, [100, 7])
    assert other.digest() == bench.machine.digest()
    assert other.digest()[0] == 192
    points = [index for index in range(300) if other.digest_at(index) is not None]
    assert points == [64, 128, 192]
    assert [other.digest_at(index) for index in points] == [bench.machine.digest_at(index) for index in points]
    assert other.digest_at(192) == other.digest()[1]
    bench.machine.close()
    other.close()
    assert other.open().index == 200
    assert other.digest() == (192, other.digest_at(192)), "the newest point outlives the process"
    other.close()


def test_a_different_result_gives_a_different_digest(bench: Bench, tmp_path: Path) -> None:
    """Two nodes whose tables differ must not go on agreeing: here one has lost a row."""
    other = Bench(str(tmp_path / "other.db"))
    other.journal = bench.journal
    message = bench.accept()
    replay(other.machine, bench.journal.items)
    assert other.machine.digest_now() == bench.machine.digest_now()
    other.machine._store.delete_messages([number_of(message)])
    other.machine._queue._messages.clear()
    assert bench.outcome(message, Result(0, 1, RecipientState.DELIVERED))
    assert replay(other.machine, bench.journal.items) == [(False,)]
    assert other.machine.digest_now() != bench.machine.digest_now()
    other.machine.close()


def test_an_error_in_the_middle_of_a_batch_undoes_all_of_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """D7, scenario 13: never the effects without the index, or the index without the effects."""
    message = bench.accept()
    before = (bench.machine.digest_now(), bench.machine.counts(), bench.queue())
    journal = bench.journal
    items: list[Item] = [
        journal.command(commands.encode_accept(TWO, [b"x"])),
        journal.command(outcomes_command(Outcome(message, 1, (Result(0, 1, RecipientState.DELIVERED),)))),
        journal.skipped(),
    ]
    for method in ("upsert_messages", "delete_messages", "upsert_history", "set_meta", "commit"):
        with monkeypatch.context() as patch:
            patch.setattr(bench.machine._store, method, _fails)
            with pytest.raises(RuntimeError, match="on purpose"):
                bench.machine.apply(items, b"")
        assert (bench.machine.digest_now(), bench.machine.counts(), bench.queue()) == before
    assert bench.machine.apply(items, b"") == [message_id(2), (True,), None]
    assert [info.id for info in bench.queue()] == [message_id(2)]


def _fails(*_: object) -> None:
    raise RuntimeError("on purpose")


def test_a_full_disk_undoes_the_batch_which_may_be_given_again(bench: Bench) -> None:
    bench.accept()
    connection = bench.machine._store._connection
    assert connection is not None
    pages = connection.execute("PRAGMA page_count").fetchall()[0][0]
    connection.execute(f"PRAGMA max_page_count = {pages}").fetchall()
    items: list[Item] = [
        bench.journal.command(commands.encode_accept(Envelope("a@example.org", (f"{n}@example.org",) * 100), [b"x"]))
        for n in range(10)
    ]
    before = bench.machine.digest_now()
    with pytest.raises(SpoolFull):
        bench.machine.apply(items, b"")
    assert bench.machine.digest_now() == before
    connection.execute("PRAGMA max_page_count = 1000000").fetchall()
    assert bench.machine.apply(items, b"") == [message_id(index) for index in range(2, 12)]
    assert len(bench.queue()) == 11


def test_a_gap_in_the_log_stops_the_machine(bench: Bench) -> None:
    bench.journal.skipped()
    with pytest.raises(AssertionError, match="item 2 after 0"):
        bench.machine.apply([bench.journal.skipped()], b"")


def test_a_newer_command_stops_the_node_and_says_what_to_do(bench: Bench) -> None:
    with pytest.raises(SpoolNewer, match="upgrade this node"):
        bench.do(b"\x01\x03\x00\x00\x00\x00")
    assert bench.machine.digest_now()[1] == 0


def test_a_file_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "spool.db")
    Bench(path).machine.close()
    connection = apsw.Connection(path)
    connection.execute("PRAGMA user_version = 4")
    connection.close()
    with pytest.raises(SpoolNewer, match=r"format 4, this version reads up to 3: upgrade this node"):
        SpoolMachine(path, A).open()


def test_a_file_that_is_no_spool_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "spool.db")
    connection = apsw.Connection(path)
    connection.execute("CREATE TABLE recipes (name)")
    connection.close()
    with pytest.raises(SpoolUnusable, match="not a spool"):
        SpoolMachine(path, A).open()
    Path(path).write_bytes(b"Dear diary, " * 1000)
    with pytest.raises(SpoolUnusable, match="damaged"):
        SpoolMachine(path, A).open()


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    bench = Bench(str(path))
    for _ in range(200):
        bench.accept()
    bench.machine.close()
    data = bytearray(path.read_bytes())
    for page in range(2, len(data) // 4096):
        data[page * 4096 : page * 4096 + 8] = b"\xff" * 8
    path.write_bytes(data)
    with pytest.raises(SpoolUnusable, match="damaged"):
        SpoolMachine(str(path), A).open()


def test_an_old_epoch_in_a_huge_index_is_only_a_number(bench: Bench) -> None:
    message = bench.accept()
    outcome = Outcome(MessageId("ZZZZZZZZZZZZ"), 2**62, (Result(0, 1, RecipientState.DELIVERED),))
    assert bench.report(outcome) == (False,)
    assert index_of(message) == 1
    assert bench.there(message).recipients == (Recipient(0, "bob@example.net"),)
