"""What a newer release wrote is refused and left as it is: a node must not write to what it does not understand."""

from __future__ import annotations

import hashlib
import json
import shutil
import smtplib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import apsw
import msgspec
import pytest

from smtpraft.cli.exits import Exit
from smtpraft.cluster.sessions import NOTES_VERSION
from smtpraft.fastlog import crc32c
from smtpraft.spool.store import FORMAT
from smtpraft.spool.sums import row_sum
from smtpraft.storage.identity import IDENTITY_FORMAT
from smtpraft.storage.promises import PROMISES_VERSION, SLOT_BYTES
from smtpraft.storage.segment import (
    SEGMENT_HEADER_BYTES,
    SEGMENT_VERSION,
    decode_segment_header,
    encode_segment_header,
)

from .cluster import Stage

pytestmark = [pytest.mark.fault, pytest.mark.timeout(120)]


def newer_segment(data: Path) -> str:
    """The newest segment of the log: the one that a newer release has begun."""
    path = max(data.glob("wal/*.wal"), key=lambda each: each.name)
    with path.open("r+b") as file:
        header = decode_segment_header(file.read(SEGMENT_HEADER_BYTES))
        assert header is not None
        file.seek(0)
        file.write(encode_segment_header(replace(header, version=SEGMENT_VERSION + 1)))
    return f"{path} has format {SEGMENT_VERSION + 1}; this program knows {SEGMENT_VERSION}"


def newer_promises(data: Path) -> str:
    """Both slots; their checksums are right."""
    path = data / "promises"
    content = bytearray(path.read_bytes())
    for slot in (0, SLOT_BYTES):
        fields = memoryview(content)[slot + 12 : slot + 12 + 133]
        assert int.from_bytes(content[slot + 8 : slot + 12]) == crc32c(bytes(fields))
        fields[:4] = (PROMISES_VERSION + 1).to_bytes(4)
        content[slot + 8 : slot + 12] = crc32c(bytes(fields)).to_bytes(4)
        fields.release()
    path.write_bytes(content)
    return f"promises has format {PROMISES_VERSION + 1}; this program knows {PROMISES_VERSION}"


def newer_identity(data: Path) -> str:
    path = data / "identity.json"
    content = json.loads(path.read_text()) | {"format": IDENTITY_FORMAT + 1}
    del content["sum"]
    path.write_text(json.dumps({**content, "sum": crc32c(json.dumps(content, sort_keys=True).encode())}))
    return f"{path} has format {IDENTITY_FORMAT + 1}; this program knows {IDENTITY_FORMAT}"


def newer_database(data: Path) -> str:
    connection = apsw.Connection(str(data / "spool" / "queue.db"))
    connection.execute(f"PRAGMA user_version = {FORMAT + 1}")
    connection.close()
    return f"format {FORMAT + 1}, this version reads up to {FORMAT}: upgrade this node"


def newer_notes(data: Path) -> str:
    """What the cluster knows of sessions and members, inside the database."""
    columns = "applied_index, stamp_ms, digest, point_index, point, counters, notes"
    connection = apsw.Connection(str(data / "spool" / "queue.db"))
    (row,) = connection.execute(f"SELECT {columns} FROM meta").fetchall()  # noqa: S608
    assert isinstance(row[-1], bytes)
    notes = msgspec.msgpack.decode(row[-1])
    assert notes[0] <= NOTES_VERSION
    changed = (*row[:-1], msgspec.msgpack.encode([NOTES_VERSION + 1, *notes[1:]]))
    connection.execute("UPDATE meta SET notes = ?, sum = ?", (changed[-1], row_sum(changed)))
    connection.close()
    return f"cluster notes of version {NOTES_VERSION + 1}; this release reads 1 to {NOTES_VERSION}"


def contents(data: Path, among: str) -> dict[str, str]:
    """Return the checksum of every file that holds something of the cluster's."""
    fleeting = ("lock", "admin.sock", "queue.db-shm", "queue.db-wal")  # the latter two hold nothing after a clean stop
    return {
        str(path.relative_to(data)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in data.glob(among)
        if path.is_file() and path.name not in fleeting
    }


async def test_what_a_newer_release_wrote_is_refused_and_left_as_it_is(directory: Path) -> None:
    async with Stage(directory, count=1, expected=(" ERROR ", " CRITICAL ")) as stage:
        (node,) = stage.cluster.nodes
        with smtplib.SMTP("127.0.0.1", node.smtp_port, timeout=20) as client:
            client.sendmail("a@x.example", ["b@y.example"], b"Subject: x\r\n\r\nhello\r\n")
        stage.terminate(node)
        assert node.process is not None
        assert node.process.wait(20) == 0
        kept = node.directory / "data"
        changes: list[Callable[[Path], str]] = [
            newer_segment,
            newer_promises,
            newer_identity,
            newer_database,
            newer_notes,
        ]
        for change in changes:
            data = directory / change.__name__
            shutil.copytree(kept, data, ignore=shutil.ignore_patterns("admin.sock"))
            words = change(data)
            # Where the log is this release's own, the node goes on in it before it looks into the database.
            among = "spool/*" if change in (newer_database, newer_notes) else "**/*"
            before = contents(data, among)
            code, log = await stage.cluster.fails_to_start(node, NODE__DATA_DIR=str(data))
            assert code == Exit.CONFIG, f"{change.__name__}: exit status {code}\n{log[-3000:]}"
            assert words in log
            assert "upgrade this node" in log, log[-1000:]
            after = contents(data, among)
            assert after == before, f"{change.__name__}: {set(after.items()) ^ set(before.items())}"
        await stage.cluster.restart(node)  # and this release's own is still good
