"""The log of a stopped node, looked at from outside; and the scrub of a running one."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from smtpraft.cli.entry import main
from smtpraft.cluster.scrubbing import FIRST_AFTER_S, REST_S, Scrubbing
from smtpraft.fastlog import ENTRY_NORMAL, Log
from smtpraft.storage import DirectoryInUse, HardState, Identity, RealDisk, Wal, WalCorrupt
from smtpraft.storage.inspection import dump, verify

CLUSTER = b"0123456789abcdef"
PAGE = 4096


def written(folder: Path, count: int = 20) -> tuple[Identity, Wal, Log]:
    """Return a node's directory in use, with entries of 1 to `count` KB in it."""
    identity = Identity.open(str(folder), cluster_id=CLUSTER, node_id="n1", election="raft")
    log = Log()
    wal, _ = Wal.open(
        RealDisk(),
        str(folder / "wal"),
        cluster_id=CLUSTER,
        node_id="n1",
        log=log,
        segment_bytes=64 * 1024,
        background=False,
        promises=str(folder),
    )
    for number in range(1, count + 1):
        block = log.append(1, number, ENTRY_NORMAL, [b"x" * 1000 * number])
        wal.write([block], number, number, HardState(1, "n1", number - 1))
    return identity, wal, log


def stopped(folder: Path) -> Path:
    identity, wal, _ = written(folder)
    wal.close()
    identity.close()
    return min((folder / "wal").glob("*.wal"))


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[3 * PAGE + 400] ^= 1
    path.write_bytes(data)


def test_a_sound_log_is_called_so(tmp_path: Path) -> None:
    stopped(tmp_path)
    verdict = verify(str(tmp_path))
    assert verdict.damage is None
    assert (verdict.first_index, verdict.last_index, verdict.hard_state) == (1, 20, HardState(1, "n1", 19))
    batches = [piece.header for piece in dump(str(tmp_path)) if piece.header is not None and piece.header.last_index]
    assert [(header.first_index, header.last_index) for header in batches] == [(n, n) for n in range(1, 21)]


def test_damage_is_named_and_nothing_is_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(stopped(tmp_path))
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(["wal", "verify", "-w", "json", str(tmp_path)]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert not facts["ok"]
    assert facts["damage"]["offset"] == 3 * PAGE
    assert (facts["damage"]["lost_first"], facts["damage"]["lost_last"]) == (3, 3)
    assert main(["wal", "dump", "--entries", "-w", "json", str(tmp_path)]) == 1
    pieces = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [piece["first_index"] for piece in pieces if not piece["sound"]] == [3]
    assert [entry["bytes"] for piece in pieces for entry in piece.get("entries", ())][:2] == [1000, 2000]
    assert main(["wal", "dump", str(tmp_path)]) == 1
    assert "damaged entries" in capsys.readouterr().out
    after = {path: hashlib.sha256(path.read_bytes()).digest() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_a_log_that_ends_before_what_was_promised_is_damaged(tmp_path: Path) -> None:
    path = stopped(tmp_path)
    max(path.parent.glob("*.wal")).unlink()
    found = verify(str(tmp_path)).damage
    assert found is not None
    assert "the newest, is missing" in found.reason


def test_a_log_in_use_is_left_alone(tmp_path: Path) -> None:
    identity, wal, _ = written(tmp_path, 1)
    with pytest.raises(DirectoryInUse):
        verify(str(tmp_path))
    wal.close()
    identity.close()


def test_the_scrub_reads_everything_at_its_rate_then_rests(tmp_path: Path) -> None:
    identity, wal, log = written(tmp_path, 60)
    found: list[WalCorrupt] = []
    with ThreadPoolExecutor(1) as files:
        scrub = Scrubbing(wal, log, files, 256 * 1024, found.append)
        now = 1000.0
        scrub.sweep(now, 60)
        began = now = now + FIRST_AFTER_S
        while not scrub.passes:
            scrub.sweep(now, 60)
            if scrub._reading is not None:
                scrub._reading.result()
            now += 0.1
        size = log.size_bytes(1, 60)
        assert scrub.read_bytes == size
        assert now - began >= size / (256 * 1024)
        damage(min((tmp_path / "wal").glob("*.wal")))
        while not found:
            now += REST_S
            scrub.sweep(now, 60)
            assert scrub._reading is not None or scrub.passes < 3
    assert found[0].offset == 3 * PAGE + 152
    wal.close()
    identity.close()
