"""The real disk, the simulated one, and the spares that are kept on either."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from smtpraft.fastlog import ENTRY_NORMAL, Log
from smtpraft.storage import Disk, HardState, RealDisk, Wal
from smtpraft.storage.disk import RealFile
from smtpraft.storage.simdisk import Operation, Outcome, SimulatedDisk
from smtpraft.storage.spares import SparePool

# ----------------------------------------------------------------------------------------------------------- both disks


@pytest.fixture(params=["real", "simulated"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Disk, str]:
    """A disk and an empty directory on it: what holds for the one must hold for the other."""
    disk: Disk = RealDisk() if request.param == "real" else SimulatedDisk()
    directory = f"{tmp_path}/below/it"
    disk.make_directory(directory)
    disk.make_directory(directory)
    return disk, directory


def test_a_file_is_what_was_written_to_it(place: tuple[Disk, str]) -> None:
    disk, directory = place
    file = disk.create(f"{directory}/a")
    file.pwritev([b"hello ", memoryview(b"world"), bytearray(b"!")], 3)
    file.sync()
    file.drop_cache()
    assert file.pread(100, 0) == b"\0\0\0hello world!"
    assert file.pread(5, 9) == b"world"
    assert file.pread(5, 99) == b""
    assert file.size_bytes() == 15
    assert file.path == f"{directory}/a"
    file.close()
    file.close()
    again = disk.open(f"{directory}/a")
    assert again.pread(5, 9) == b"world"
    again.close()


def test_names_can_be_changed(place: tuple[Disk, str]) -> None:
    disk, directory = place
    for name in ("b", "a"):
        disk.create(f"{directory}/{name}").close()
    disk.rename(f"{directory}/a", f"{directory}/c")
    disk.unlink(f"{directory}/b")
    disk.sync_directory(directory)
    assert disk.list_directory(directory) == ["c"]


def test_errors_are_those_of_posix(place: tuple[Disk, str]) -> None:
    disk, directory = place
    disk.create(f"{directory}/a").close()
    with pytest.raises(FileExistsError):
        disk.create(f"{directory}/a")
    for act in (disk.open, disk.unlink, lambda path: disk.rename(path, path + "x")):
        with pytest.raises(FileNotFoundError):
            act(f"{directory}/none")
    with pytest.raises(FileNotFoundError):
        disk.list_directory(f"{directory}/none")


def test_a_zeroed_file_is_all_zeros(place: tuple[Disk, str]) -> None:
    disk, directory = place
    file = disk.create(f"{directory}/a")
    disk.allocate_zeroed(file, 5 * 1024 * 1024 + 4096)
    assert file.size_bytes() == 5 * 1024 * 1024 + 4096
    assert not any(file.pread(2**30, 0))
    file.close()


def test_a_reserved_file_reads_as_zeros_and_takes_its_room(place: tuple[Disk, str]) -> None:
    disk, directory = place
    file = disk.create(f"{directory}/a")
    disk.reserve(file, 5 * 1024 * 1024 + 4096)
    assert file.size_bytes() == 5 * 1024 * 1024 + 4096
    assert not any(file.pread(2**30, 0))
    if isinstance(disk, RealDisk):
        assert os.stat(f"{directory}/a").st_blocks * 512 >= 5 * 1024 * 1024
    file.close()


def test_random_numbers_differ(place: tuple[Disk, str]) -> None:
    disk, _ = place
    assert len({disk.random_u64() for _ in range(10)}) == 10


def test_a_log_works_on_it(place: tuple[Disk, str]) -> None:
    disk, directory = place
    log = Log()
    wal, _ = Wal.open(disk, directory, cluster_id=bytes(16), node_id="n", log=log, segment_bytes=65536)
    for index in range(1, 40):
        wal.write([log.append(1, 0, ENTRY_NORMAL, [bytes(9000)])], index, index, HardState(1))
    assert wal.compact(30) == 29
    wal.close()
    found = Log()
    wal, recovery = Wal.open(disk, directory, cluster_id=bytes(16), node_id="n", log=found, segment_bytes=65536)
    assert (recovery.first_index, recovery.last_index, recovery.torn_bytes) == (29, 39, 0)
    assert found.entries(29, 39) == log.entries(29, 39)
    wal.close()


# -------------------------------------------------------------------------------------------------------- the real disk


def test_a_write_of_very_many_pieces_is_whole(tmp_path: Path) -> None:
    file = RealDisk().create(f"{tmp_path}/a")
    file.pwritev([bytes([number % 256]) for number in range(5000)], 10)
    assert file.pread(5000, 10) == bytes(number % 256 for number in range(5000))
    file.close()


def test_a_write_or_read_cut_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwritev, pwrite, pread = os.pwritev, os.pwrite, os.pread
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset: pwritev(fd, [b"".join(buffers)[:3]], offset))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:2], offset))
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: pread(fd, min(length, 2), offset))
    file = RealDisk().create(f"{tmp_path}/a")
    file.pwritev([b"hel", b"lo ", b"world"], 0)
    assert file.pread(100, 0) == b"hello world"
    file.close()


def test_a_file_system_that_cannot_reserve_gets_zeros_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    disk = RealDisk()
    file = disk.create(f"{tmp_path}/a")
    disk.allocate_zeroed(file, 65536)
    assert file.size_bytes() == 65536
    assert isinstance(file, RealFile)
    file.close()


# --------------------------------------------------------------------------------------------------- the simulated disk


def outcomes(disk: SimulatedDisk, outcome: Outcome, path: str, seeds: int = 200) -> set[bytes]:
    """Return what each of many power cuts leaves of a file."""
    found = set()
    for seed in range(seeds):
        image = disk.crash(outcome, seed)
        directory, _, name = path.rpartition("/")
        found.add(image.contents(path) if name in image.list_directory(directory) else b"absent")
    return found


def simulated() -> SimulatedDisk:
    disk = SimulatedDisk()
    disk.make_directory("/d")
    file = disk.create("/d/a")
    file.pwritev([b"A" * 1024], 0)
    file.sync()
    disk.sync_directory("/d")
    return disk


def test_what_is_not_synced_may_be_lost_in_any_part() -> None:
    disk = simulated()
    file = disk.open("/d/a")
    file.pwritev([b"B" * 1024], 0)
    old, new = b"A" * 512, b"B" * 512
    assert file.pread(2048, 0) == new + new
    assert outcomes(disk, Outcome.NOTHING, "/d/a") == {old + old}
    assert outcomes(disk, Outcome.ALL, "/d/a") == {new + new}
    assert outcomes(disk, Outcome.SECTORS, "/d/a") == {old + old, old + new, new + old, new + new}
    assert len(outcomes(disk, Outcome.TORN, "/d/a")) > 20
    file.sync()
    assert outcomes(disk, Outcome.TORN, "/d/a") == {new + new}


def test_a_file_may_end_up_longer_than_what_is_stored_of_it() -> None:
    disk = simulated()
    disk.open("/d/a").pwritev([b"B" * 512], 1024 + 512)
    assert outcomes(disk, Outcome.SECTORS, "/d/a") == {b"A" * 1024, b"A" * 1024 + bytes(512) + b"B" * 512}


def test_a_name_that_is_not_synced_may_be_the_old_or_the_new() -> None:
    disk = simulated()
    disk.rename("/d/a", "/d/b")
    assert outcomes(disk, Outcome.SECTORS, "/d/a") == {b"A" * 1024, b"absent"}
    assert outcomes(disk, Outcome.NOTHING, "/d/b") == {b"absent"}
    disk.unlink("/d/b")
    assert outcomes(disk, Outcome.ALL, "/d/b") == {b"absent"}
    disk.sync_directory("/d")
    assert outcomes(disk, Outcome.SECTORS, "/d/a") == {b"absent"}


def test_a_failed_sync_forgets_and_the_next_one_lies() -> None:
    disk = simulated()
    file = disk.open("/d/a")
    file.pwritev([b"B" * 1024], 0)

    def fail(operation: Operation) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    disk.hook = fail
    with pytest.raises(OSError, match="Input/output"):
        file.sync()
    disk.hook = None
    file.sync()
    assert file.pread(1, 0) == b"B"
    assert outcomes(disk, Outcome.ALL, "/d/a") == {b"A" * 1024}
    file.drop_cache()
    assert file.pread(1, 0) == b"A"


def test_a_disk_has_room_for_so_much() -> None:
    disk = simulated()
    disk.capacity_bytes = 1500
    file = disk.open("/d/a")
    file.pwritev([b"B" * 476], 1024)
    file.pwritev([b"over what is there"], 0)
    with pytest.raises(OSError, match="No space") as caught:
        file.pwritev([b"C"], 1500)
    assert caught.value.errno == errno.ENOSPC
    disk.unlink("/d/a")
    assert disk.room_bytes() == 1500


# --------------------------------------------------------------------------------------------------------------- spares


def pool(disk: SimulatedDisk) -> SparePool:
    disk.make_directory("/d")
    return SparePool(disk, "/d", 65536, [])


def test_a_thread_keeps_two_spares_ready() -> None:
    disk = SimulatedDisk()
    spares = pool(disk)
    spares.start()
    names = set()
    for _ in range(10):
        while (name := spares.take()) is None:
            threading.Event().wait(0.001)
        names.add(name)
    assert len(names) == 10
    while spares.count < 2:
        threading.Event().wait(0.001)
    spares.close()
    assert spares.count == 2


@pytest.mark.parametrize("room", [True, False])
def test_nobody_waits_for_a_spare_that_is_being_made_unless_it_took_the_last_room(room: bool) -> None:
    """To fill one takes seconds beside a busy log. A leader whose log waited for that would seem to have no disk."""
    disk = SimulatedDisk(capacity_bytes=1 << 20 if room else 100_000)
    spares = pool(disk)
    making, go_on = threading.Event(), threading.Event()

    def hold(operation: Operation) -> None:
        if operation.kind == "sync" and threading.current_thread() is maker:
            making.set()
            assert go_on.wait(10)

    disk.hook = hold
    maker = threading.Thread(target=spares.prepare)
    maker.start()
    assert making.wait(10)
    assert spares.take() is None
    if room:
        assert spares.take_or_make(4096) == ("0000000000000002.tmp", 65536, True)
        assert not go_on.is_set()
        go_on.set()
    else:
        threading.Timer(0.01, go_on.set).start()
        assert spares.take_or_make(4096) == ("0000000000000001.spare", 65536, False)
    maker.join()


@pytest.mark.parametrize("kind", ["create", "write", "sync", "rename", "sync directory"])
def test_a_spare_that_cannot_be_made_is_tried_again_later(kind: str) -> None:
    disk = SimulatedDisk()
    spares = pool(disk)

    def fail(operation: Operation) -> None:
        if operation.kind == kind:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    disk.hook = fail
    assert not spares.prepare()
    assert spares.take() is None
    disk.hook = None
    assert spares.prepare()
    assert not spares.full
    assert spares.take() is not None


def test_a_directory_that_cannot_grow_gives_room_instead() -> None:
    disk = SimulatedDisk()
    spares = pool(disk)
    disk.create("/d/old").pwritev([bytes(65536)], 0)

    def fail(operation: Operation) -> None:
        if operation.kind == "rename":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    disk.hook = fail
    spares.recycle(["old"])
    assert disk.list_directory("/d") == []
    assert spares.count == 0
