"""The key-value map: what each command does to it, and that all nodes agree."""

from __future__ import annotations

import random
from pathlib import Path

import apsw
import pytest

from smtpraft.errors import NotReplicated
from smtpraft.spool import commands, keymap
from smtpraft.spool.commands import KEY_DELETE, KEY_PUT, Refusal, encode_key
from smtpraft.spool.keyclient import KeyValues
from smtpraft.spool.keyvalues import (
    ABSENT,
    KEY_BYTES_MAX,
    VALUE_BYTES_MAX,
    KeyConflict,
    KeyInfo,
    KeyResult,
    KeyValue,
    MapFull,
)
from smtpraft.spool.machine import SpoolMachine
from smtpraft.spool.types import MessageInfo

from .journal import A, B, Bench, Journal, Single, replay, tables


@pytest.fixture
def keys(bench: Bench) -> KeyValues:
    return KeyValues(Single(bench), bench.machine)


async def test_a_value_comes_back_with_the_index_of_its_entry(keys: KeyValues, bench: Bench) -> None:
    bench.accept()
    assert await keys.get("colour") is None
    assert await keys.put("colour", b"green") == 2
    assert await keys.get("colour") == KeyValue("colour", b"green", 2)
    assert await keys.put("colour", b"") == 3
    assert await keys.get("colour", linearizable=False) == KeyValue("colour", b"", 3)
    assert (bench.machine.counts()["keys"], bench.machine.counts()["key_bytes"]) == (1, 6)


async def test_a_comparison_that_fails_changes_nothing_and_names_the_revision(keys: KeyValues) -> None:
    first = await keys.put("k", b"a", expected=ABSENT)
    with pytest.raises(KeyConflict, match="'k' is at revision 1, but was to be created") as caught:
        await keys.put("k", b"b", expected=ABSENT)
    assert caught.value.revision == first
    second = await keys.put("k", b"b", expected=first)
    with pytest.raises(KeyConflict, match="'k' is at revision 3, not at 1; read it again"):
        await keys.put("k", b"c", expected=first)
    with pytest.raises(KeyConflict):
        await keys.delete("k", expected=first)
    assert await keys.get("k") == KeyValue("k", b"b", second)
    with pytest.raises(KeyConflict, match="'other' is not there, not at 3"):
        await keys.put("other", b"x", expected=second)


async def test_a_deletion_frees_what_the_key_took(keys: KeyValues, bench: Bench) -> None:
    revision = await keys.put("k", b"value")
    assert await keys.delete("k", expected=revision) == revision
    assert await keys.get("k") is None
    assert await keys.delete("k") == ABSENT
    assert (bench.machine.counts()["keys"], bench.machine.counts()["key_bytes"]) == (0, 0)
    assert await keys.put("k", b"again", expected=ABSENT) > revision, "a key that comes back is not at an old revision"


async def test_keys_are_listed_in_the_order_of_their_bytes(keys: KeyValues) -> None:
    names = ["a/1", "a/10", "a/2", "a", "b", "Z", "ä", "a/\U0001f4e7", "a/\uffff"]
    for name in names:
        await keys.put(name, name.encode())
    listed = [info.key for info in await keys.keys()]
    assert listed == sorted(names, key=str.encode)
    assert [info.key for info in await keys.keys("a/")] == ["a/1", "a/10", "a/2", "a/\uffff", "a/\U0001f4e7"]
    assert [info.key for info in await keys.keys("a/", limit=2)] == ["a/1", "a/10"]
    assert await keys.keys("a/", after="a/10", limit=1) == [KeyInfo("a/2", 3, 3)]
    assert await keys.keys("c") == []


@pytest.mark.parametrize(
    "key", ["", "x" * (KEY_BYTES_MAX + 1), "ä" * (KEY_BYTES_MAX // 2 + 1), "a\nb", "\x00", "\x7f", "\udcff"]
)
async def test_what_is_no_key_is_refused_before_it_is_proposed(keys: KeyValues, bench: Bench, key: str) -> None:
    with pytest.raises(ValueError, match="a key"):
        await keys.put(key, b"")
    with pytest.raises(ValueError, match="a key"):
        await keys.get(key)
    assert bench.journal.items == []


async def test_limits_hold_to_the_byte(keys: KeyValues) -> None:
    longest = "ä" * (KEY_BYTES_MAX // 2)
    await keys.put(longest, bytes(VALUE_BYTES_MAX))
    found = await keys.get(longest)
    assert found is not None
    assert len(found.value) == VALUE_BYTES_MAX
    with pytest.raises(ValueError, match="a value of 65537 bytes: at most 65536"):
        await keys.put("k", bytes(VALUE_BYTES_MAX + 1))
    with pytest.raises(ValueError, match="no revision"):
        await keys.put("k", b"", expected=-1)


async def test_a_full_map_takes_no_more_but_lets_go(
    keys: KeyValues, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keymap, "KEYS_MAX", 3)
    monkeypatch.setattr(keymap, "MAP_BYTES_MAX", 100)
    for name in "abc":
        await keys.put(name, b"x" * 20)
    with pytest.raises(MapFull, match="delete something first"):
        await keys.put("d", b"")
    await keys.put("a", b"x" * 57)
    with pytest.raises(MapFull):
        await keys.put("a", b"x" * 58)
    assert await keys.get("a") == KeyValue("a", b"x" * 57, 5)
    await keys.delete("b")
    await keys.put("d", b"x" * 20)
    assert (bench.machine.counts()["keys"], bench.machine.counts()["key_bytes"]) == (3, 100)


def test_what_nobody_should_have_proposed_is_refused_alike(bench: Bench) -> None:
    """The proposer checks; but the log may hold anything."""
    for data in (
        encode_key(KEY_PUT, "", None, b""),
        encode_key(KEY_PUT, "a\x01", None, b""),
        encode_key(KEY_PUT, "k" * 600, None, b""),
        encode_key(KEY_PUT, "k", None, bytes(VALUE_BYTES_MAX + 1)),
        encode_key(KEY_DELETE, "k", None, b"body"),
        encode_key(KEY_PUT, "k", -1, b""),
        encode_key(KEY_PUT, "k", 2**63, b""),
        b"\x09\x01" + encode_key(KEY_PUT, "k", None, b"")[2:],
    ):
        assert bench.do(data) is Refusal.MALFORMED, data[:40]
    assert bench.machine.counts()["keys"] == 0


async def test_a_command_that_is_not_replicated_says_so(bench: Bench) -> None:
    node = Single(bench)
    node.refuse = 1
    with pytest.raises(NotReplicated):
        await KeyValues(node, bench.machine).put("k", b"")


def _random_commands(seed: int) -> Journal:
    rng = random.Random(seed)
    journal = Journal()
    revisions = [ABSENT]
    for _ in range(150):
        key = rng.choice(["a", "b", "ä", "c/1"])
        expected = rng.choice([None, None, ABSENT, rng.choice(revisions)])
        if rng.random() < 0.7:
            data = encode_key(KEY_PUT, key, expected, rng.randbytes(rng.randint(0, 300)))
        else:
            data = encode_key(KEY_DELETE, key, expected, b"")
        journal.command(data, rng.choice([A, B]))
        revisions.append(len(journal.items))
    return journal


@pytest.mark.parametrize("seed", range(5))
def test_nodes_agree_whatever_their_batches_and_restarts(tmp_path: Path, seed: int) -> None:
    """S1 of determinism: rows, results, counters and digest, one by one or in batches, with a restart between."""
    journal = _random_commands(seed)
    one, other = SpoolMachine(str(tmp_path / "1.db"), A), SpoolMachine(str(tmp_path / "2.db"), B)
    one.open()
    results = replay(one, journal.items)
    other.open()
    half = len(journal.items) // 2
    again: list[object] = list(other.apply(journal.items[:half], b"notes"))
    other.close()
    other = SpoolMachine(str(tmp_path / "2.db"), B)
    other.open()
    again += other.apply(journal.items[half:], b"notes")
    assert again == results
    assert one.digest_now() == other.digest_now()
    assert {type(result) for result in results} == {KeyResult}
    assert {result.done for result in results if isinstance(result, KeyResult)} == {True, False}
    one.close()
    other.close()
    assert tables(str(tmp_path / "1.db")) == tables(str(tmp_path / "2.db"))
    rows = tables(str(tmp_path / "1.db"))["keys"]
    assert rows
    counts = one.counts()
    sizes = [len(str(key).encode()) + len(value) for key, value, *_ in rows if isinstance(value, bytes)]
    assert (counts["keys"], counts["key_bytes"]) == (len(rows), sum(sizes))


def test_the_digest_tells_what_a_command_did(tmp_path: Path) -> None:
    """Two nodes of which one takes the same comparison for won and the other for lost must not pass for alike."""
    digests = []
    for name in ("sound", "damaged"):
        bench = Bench(str(tmp_path / name))
        bench.do(encode_key(KEY_PUT, "k", None, b"a"))
        if name == "damaged":
            connection = apsw.Connection(str(tmp_path / name))
            connection.execute("UPDATE keys SET revision = 7").fetchall()
            connection.close()
        bench.do(encode_key(KEY_PUT, "k", 1, b"b"))
        digests.append(bench.machine.digest_now())
        bench.machine.close()
    assert digests[0] != digests[1]


def test_a_file_of_format_1_is_brought_up(tmp_path: Path) -> None:
    path = str(tmp_path / "spool.db")
    bench = Bench(path)
    message = bench.accept()
    bench.machine.close()
    connection = apsw.Connection(path)
    for table in ("messages", "recipients", "bodies", "meta"):
        connection.execute(f"ALTER TABLE {table} DROP COLUMN sum").fetchall()
    connection.execute("ALTER TABLE meta DROP COLUMN copied_sum").fetchall()
    connection.execute("DROP TABLE keys; PRAGMA user_version = 1").fetchall()
    connection.close()
    fresh = Bench(str(tmp_path / "fresh.db"))
    fresh.machine.close()
    machine = SpoolMachine(path, A)
    machine.open()
    journal = bench.journal
    machine.apply([journal.command(encode_key(KEY_PUT, "k", None, b"v"))], b"")
    assert machine.reader.key("k") == KeyValue("k", b"v", 2)
    machine.close()
    shapes = []
    for name in ("spool.db", "fresh.db"):
        connection = apsw.Connection(str(tmp_path / name))
        names = connection.execute("SELECT name FROM sqlite_schema ORDER BY name").fetchall()
        columns = connection.execute("SELECT name, type, \"notnull\", pk FROM pragma_table_info('keys')").fetchall()
        shapes.append((names, columns, connection.execute("PRAGMA user_version").fetchall()))
        connection.close()
    assert shapes[0] == shapes[1]
    assert message in {info.id for info in _queue(path)}


def _queue(path: str) -> list[MessageInfo]:
    machine = SpoolMachine(path, A)
    machine.open()
    found = machine.reader.page(0, 10)
    machine.close()
    return found


def test_an_older_node_stops_at_a_command_of_the_map() -> None:
    """It would refuse what others apply, and differ from then on: the version tells it to stop instead."""
    assert encode_key(KEY_PUT, "k", None, b"")[1] == encode_key(KEY_DELETE, "k", None, b"")[1] == 2
    assert commands.encode_forget_upload(1)[1] == 1
