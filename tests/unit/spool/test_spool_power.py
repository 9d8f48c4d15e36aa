"""What survives a power loss, and what happens when a sync fails: through a VFS that knows what was synced."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from smtpraft.spool import checkpointer, commands
from smtpraft.spool.machine import SpoolMachine

from .journal import ENVELOPE, A, Bench, replay, tables


class PowerVFS(apsw.VFS):
    """The usual files; a copy of each as it was when it was last synced is in `synced`."""

    def __init__(self, synced: Path) -> None:
        self.synced = synced
        self.fail = False
        self.syncs: list[str] = []
        super().__init__("power", "unix", makedefault=True)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        return PowerFile(self, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        super().xDelete(filename, syncdir)
        if Path(filename).parent == self.synced.parent:
            (self.synced / Path(filename).name).unlink(missing_ok=True)


class PowerFile(apsw.VFSFile):
    def __init__(self, vfs: PowerVFS, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        self._vfs = vfs
        self._path = Path(name.filename() if isinstance(name, apsw.URIFilename) else name or "")
        super().__init__("unix", name, flags)

    def xSync(self, flags: int) -> None:  # noqa: N802
        if self._vfs.fail:
            raise apsw.IOError("on purpose")
        super().xSync(flags)
        if self._path.parent != self._vfs.synced.parent:
            return
        self._vfs.syncs.append(self._path.name)
        shutil.copy(self._path, self._vfs.synced / self._path.name)


@pytest.fixture
def vfs(tmp_path: Path) -> Iterator[PowerVFS]:
    (tmp_path / "synced").mkdir()
    before = apsw.vfs_names()[0]
    vfs = PowerVFS(tmp_path / "synced")
    yield vfs
    apsw.set_default_vfs(before)
    vfs.unregister()


def image(tmp_path: Path, vfs: PowerVFS, number: int, dice: random.Random | None = None) -> Path:
    """Return a directory with what a power cut now would leave: what was synced, with `dice` some of the rest too."""
    left = tmp_path / f"image-{number}"
    shutil.copytree(vfs.synced, left)
    log, now = left / "spool.db-wal", (tmp_path / "spool.db-wal").read_bytes()
    if dice is not None:
        data = bytearray(log.read_bytes() if log.exists() else b"")
        data += bytes(len(now) - len(data)) if len(now) > len(data) else b""
        for sector in range(0, len(now), 512):
            if dice.random() < 0.8:
                data[sector : sector + 512] = now[sector : sector + 512]
        log.write_bytes(data)
    return left


def test_what_a_checkpoint_vouches_for_survives_a_power_loss(vfs: PowerVFS, tmp_path: Path) -> None:
    """The log may be cut at the index that `checkpoint` returned: everything up to it must come back from the disk."""
    dice = random.Random(8812)
    bench = Bench(str(tmp_path / "spool.db"))
    accept = commands.encode_accept(ENVELOPE, [b"x"])
    safe = 0
    for number in range(40):
        items = [bench.journal.command(accept) for _ in range(dice.randrange(1, 30))]
        bench.machine.apply(items, b"notes")
        match dice.randrange(4):
            case 0:
                safe = bench.machine.checkpoint()
                assert safe == items[-1].index
            case 1:
                bench.machine._store.checkpoint()
        if safe:
            left = image(tmp_path, vfs, number, dice if number % 2 else None)
            survivor = SpoolMachine(str(left / "spool.db"), A)
            assert survivor.open().index >= safe
            replay(survivor, bench.journal.items)
            assert survivor.digest_now() == bench.machine.digest_now()
            assert tables(str(left / "spool.db")) == tables(str(tmp_path / "spool.db"))
            survivor.close()
    bench.machine.close()


def test_copies_of_bodies_survive_a_power_loss_before_the_log_is_cut(vfs: PowerVFS, tmp_path: Path) -> None:
    bench = Bench(str(tmp_path / "spool.db"))
    message = bench.accept(body=b"precious")
    bench.machine.before_compaction(1)
    left = image(tmp_path, vfs, 0)
    survivor = SpoolMachine(str(left / "spool.db"), A)
    survivor.open()
    assert list(survivor.reader.bodies(bench.there(message).parts).values()) == [b"precious"]
    survivor.close()
    bench.machine.close()


def test_a_commit_costs_no_sync(vfs: PowerVFS, tmp_path: Path) -> None:
    bench = Bench(str(tmp_path / "spool.db"))
    bench.accept()
    vfs.syncs.clear()
    for _ in range(50):
        bench.accept()
    assert vfs.syncs == []
    bench.machine.checkpoint()
    assert vfs.syncs == ["spool.db-wal"]
    bench.machine.checkpoint()
    assert vfs.syncs == ["spool.db-wal"], "nothing new, nothing to sync"
    bench.machine.close()


def test_a_failed_sync_is_never_passed_over(vfs: PowerVFS, tmp_path: Path) -> None:
    """D4: the kernel may have dropped the pages; the node must stop, and the index must not be vouched for."""
    bench = Bench(str(tmp_path / "spool.db"))
    bench.accept()
    vfs.fail = True
    with pytest.raises(apsw.IOError):
        bench.machine.checkpoint()
    vfs.fail = False
    bench.machine.close()


def accept_many(bench: Bench) -> None:
    for _ in range(1000):
        bench.accept()


def test_a_sync_that_failed_beside_the_applying_stops_the_next_batch(
    vfs: PowerVFS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointer, "PAGES_MIN", 1)
    bench = Bench(str(tmp_path / "spool.db"))
    vfs.fail = True
    with pytest.raises(apsw.IOError, match="on purpose"):
        accept_many(bench)
    vfs.fail = False
    bench.machine.close()


def test_sqlites_own_log_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no pause between batches, nobody calling `checkpoint`, and a reader now and then."""
    monkeypatch.setattr(checkpointer, "PAGES_MIN", 50)
    monkeypatch.setattr(checkpointer, "PAGES_MAX", 200)
    bench = Bench(str(tmp_path / "spool.db"))
    most = 0
    for number in range(3000):
        bench.accept()
        most = max(most, bench.machine._store.wal_pages)
        if number % 100 == 0:
            bench.queue()
    assert 50 <= most < 3000, "10,000 pages were written"
    bench.machine.close()


def limit_pages(bench: Bench, spare: int | None) -> None:
    connection = bench.machine._store._connection
    assert connection is not None
    pages = connection.execute("PRAGMA page_count").fetchall()[0][0]
    assert isinstance(pages, int)
    connection.execute(f"PRAGMA max_page_count = {2**30 if spare is None else pages + spare}").fetchall()


def sync_count(bench: Bench) -> int:
    assert bench.machine._store._connection is not None
    count = bench.machine._store._connection.execute("SELECT syncs FROM meta").fetchall()[0][0]
    assert isinstance(count, int)
    return count


def test_without_room_for_the_copies_the_log_is_not_cut(bench: Bench) -> None:
    """D9: a full disk stops no node. What the log still has, it keeps; the next compaction goes on from there."""
    for _ in range(5):
        bench.accept(body=bytes(3 * 1024 * 1024))
    limit_pages(bench, 1600)  # 6.4 MB: room for two of them, which are one transaction
    assert bench.machine.checkpoint() == 5
    bench.machine.before_compaction(5)
    syncs = sync_count(bench)
    assert bench.machine.checkpoint() == 2
    assert sync_count(bench) == syncs + 1, "the copies are synced too"
    bench.accept()
    assert bench.machine.checkpoint() == 2
    limit_pages(bench, None)
    bench.machine.before_compaction(4)
    assert bench.machine.checkpoint() == 6
    copies = bench.machine.reader.bodies([part for info in bench.queue() for part in info.parts])
    assert sorted(number >> 12 for number in copies) == [1, 2, 3, 4]


def test_without_room_nothing_more_is_vouched_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise apsw.FullError("on purpose")

    bench.accept()
    assert bench.machine.checkpoint() == 1
    bench.accept()
    with monkeypatch.context() as patch:
        patch.setattr(bench.machine._store, "sync", full)
        assert bench.machine.checkpoint() == 1
    assert bench.machine.checkpoint() == 2
