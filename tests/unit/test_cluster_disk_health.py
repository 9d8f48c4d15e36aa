"""Whether a disk is fit: full, slow, quick again; and what follows from that for who leads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from smtpraft.cluster.disk_health import QUICK_FOR_S, DiskHealth, DiskState
from smtpraft.cluster.heartbeats import NO_ROOM_BIT
from smtpraft.cluster.settings import NodeOptions
from smtpraft.consensus import Role
from smtpraft.storage.room import BALLAST_BYTES, BALLAST_FILE, Ballast, Room
from smtpraft.storage.writer import Pace
from smtpraft.types import NodeId

N2, N3 = NodeId("n2"), NodeId("n3")
TIMEOUT_S = 0.15


class Bench:
    """A leader's disk, and what it does to the core."""

    def __init__(self, folder: Path) -> None:
        self.pace = Pace()
        self.age_s = 0.0
        self.handed_to: list[NodeId] = []
        self.probes = 0
        row = SimpleNamespace(match_index=5, is_learner=False)
        self.core = SimpleNamespace(
            leader_id=NodeId("n1"),
            role=Role.LEADER,
            barred=False,
            status=lambda: SimpleNamespace(progress={N2: row, N3: row}),
            transfer_leader=self.handed_to.append,
        )
        self.writer = SimpleNamespace(
            pace=self.pace,
            waiting_for_room=False,
            read_only=False,
            write_age_s=lambda: self.age_s,
            submit=self._submit,
        )
        self.applier = SimpleNamespace(waiting_for_room=False)
        self.beats = SimpleNamespace(disk_lag_ms={N2: 0, N3: 0}, short_of_room=set())
        self.files = ThreadPoolExecutor(1)
        options = NodeOptions(NodeId("n1"), str(folder), b"c" * 16, disk_reserve_bytes=0)
        self.health = DiskHealth(
            options,
            self.writer,  # type: ignore[arg-type]
            self.applier,  # type: ignore[arg-type]
            self.core,  # type: ignore[arg-type]
            self.beats,  # type: ignore[arg-type]
            self.files,
            lambda _: True,
        )
        self.now = self.health._led_at

    def _submit(self, *arguments: object) -> None:
        self.probes += 1
        self.pace.took(0.001)
        arguments[-1]()  # type: ignore[operator]

    def writes(self, *seconds: float) -> None:
        for each in seconds:
            self.pace.took(each)

    def judge(self, after_s: float = 0.1) -> DiskState:
        self.now += after_s
        self.health.judge(self.now)
        return self.health.state


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_one_long_write_is_an_accident(bench: Bench) -> None:
    bench.writes(0.001, 0.2, 0.001, 0.2, 0.2)
    assert bench.judge() is DiskState.OK
    assert bench.handed_to == []


def test_a_leader_whose_disk_crawls_hands_over_and_does_not_come_back_until_it_keeps_up(bench: Bench) -> None:
    bench.writes(0.1, 0.1, 0.1)
    assert bench.judge() is DiskState.SLOW
    assert bench.handed_to == [N2]
    assert bench.core.barred
    assert bench.health.report() == 225, "it would not take over"
    bench.core.role = Role.FOLLOWER
    for _ in range(40):  # idle: only its own probes show that it is quick again
        if bench.judge() is DiskState.OK:
            break
    assert bench.health.state is DiskState.OK
    assert bench.probes >= 6
    assert not bench.core.barred


def test_it_hands_over_to_nobody_whose_disk_is_as_bad(bench: Bench) -> None:
    bench.beats.disk_lag_ms = {N2: 80, N3: 90}
    bench.writes(0.1, 0.1, 0.1)
    bench.judge()
    assert bench.handed_to == []


def test_disks_that_are_busy_alike_hand_nothing_over(bench: Bench) -> None:
    """Three nodes on one disk, all with long messages: whoever leads has them. What a follower says is its worst."""
    bench.writes(0.08, 0.15, 0.12)
    bench.beats.disk_lag_ms = {N2: 60, N3: 150}
    assert bench.judge() is DiskState.SLOW
    assert bench.handed_to == []
    bench.core.role = Role.FOLLOWER
    bench.health._slow_since = 0.0
    bench.writes(0.001, 0.07, 0.001, 0.001)
    assert bench.health.report() == 150
    bench.writes(*[0.002] * 8)
    assert bench.health.report() == 2


def test_a_hanging_write_is_enough(bench: Bench) -> None:
    """It must be over within two election timeouts, with the handing over."""
    bench.age_s = 1.4 * TIMEOUT_S
    assert bench.judge() is DiskState.OK
    bench.age_s = 1.6 * TIMEOUT_S
    assert bench.judge() is DiskState.SLOW
    assert bench.handed_to == [N2]


def test_a_slow_disk_leads_if_nobody_else_does_and_a_hanging_one_does_not(bench: Bench) -> None:
    bench.core.role, bench.core.leader_id = Role.FOLLOWER, NodeId("")
    bench.writes(0.1, 0.1, 0.1)
    bench.judge()
    assert bench.core.barred
    bench.writes(0.1, 0.1, 0.1)
    bench.judge(5.0)
    assert not bench.core.barred
    bench.age_s = 1.0
    bench.judge()
    assert bench.core.barred


def test_a_node_without_room_says_so_and_hands_over_to_one_that_has_some(bench: Bench) -> None:
    bench.beats.short_of_room = {N2}
    bench.applier.waiting_for_room = True
    assert bench.judge() is DiskState.FULL
    assert bench.health.report() & NO_ROOM_BIT
    assert bench.handed_to == [N3]
    bench.applier.waiting_for_room = False
    assert bench.judge() is DiskState.OK
    assert bench.health.report() == 0
    assert QUICK_FOR_S > 0


def test_what_a_look_at_a_file_system_means() -> None:
    assert Room(100, 1000, read_only=False).short_of(100) == ""
    assert "99 bytes are free, 100" in Room(99, 1000, read_only=False).short_of(100)
    assert "inodes" in Room(100, 3, read_only=False).short_of(100)
    assert "read-only" in Room(100, 1000, read_only=True).short_of(100)


def test_the_ballast_goes_when_nothing_is_left_and_comes_back(tmp_path: Path) -> None:
    ballast = Ballast(str(tmp_path))
    path = tmp_path / BALLAST_FILE
    plenty = Room(10 * BALLAST_BYTES, 1000, read_only=False)
    ballast.trim(Room(BALLAST_BYTES, 1000, read_only=False), BALLAST_BYTES)
    assert not path.exists()
    ballast.trim(plenty, BALLAST_BYTES)
    assert path.stat().st_blocks * 512 >= BALLAST_BYTES
    Ballast(str(tmp_path)).trim(Room(BALLAST_BYTES, 1000, read_only=False), BALLAST_BYTES)
    assert path.exists()
    ballast.trim(Room(0, 1000, read_only=False), BALLAST_BYTES)
    assert not path.exists()
