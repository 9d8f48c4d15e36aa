"""A machine in memory: what it keeps, what survives a crash at any moment, and what it refuses to start from."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from smtpraft.cluster import Applied, Command, Item, MemoryMachine, NodeDown, NodeId, NodeUp, Skipped
from smtpraft.cluster.memory import POINT_INTERVAL
from smtpraft.errors import Fatal

N1 = NodeId("n1")


class Names(MemoryMachine):
    """Names in the order in which they came, and which nodes work."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.names: list[str] = []
        self.up: list[str] = []

    def command(self, item: Command) -> object:
        self.names.append(item.data.decode())
        return len(self.names)

    def node_changed(self, item: NodeUp | NodeDown) -> None:
        self.up = [node for node in self.up if node != item.node]
        if isinstance(item, NodeUp):
            self.up.append(item.node)

    def dump(self) -> bytes:
        return json.dumps([self.names, self.up]).encode()

    def load(self, state: bytes) -> None:
        self.names, self.up = json.loads(state)


def items(first: int, names: Sequence[str]) -> list[Item]:
    return [Command(first + place, 1, 0, 0, N1, name.encode()) for place, name in enumerate(names)]


def reopened(path: Path) -> tuple[Names, Applied]:
    machine = Names(str(path))
    return machine, machine.open()


def test_commands_have_answers_and_other_entries_none(tmp_path: Path) -> None:
    machine = Names(str(tmp_path / "state"))
    assert machine.open() == Applied(0, b"")
    some: list[Item] = [NodeUp(1, 1, 0, 0, N1), *items(2, ["a"]), Skipped(3, 1, 0, 0), *items(4, ["b"])]
    assert machine.apply(some, b"n") == [None, 1, None, 2]
    machine.apply([NodeDown(5, 1, 0, 0, N1, ())], b"n")
    assert (machine.names, machine.up) == (["a", "b"], [])


def test_what_was_written_is_there_at_the_next_start_and_no_more(tmp_path: Path) -> None:
    """The rest is in the log, which is not cut behind what `checkpoint` said."""
    machine = Names(str(tmp_path / "state"))
    machine.open()
    machine.apply(items(1, ["a", "b"]), b"one")
    assert machine.checkpoint() == 2
    machine.apply(items(3, ["c"]), b"two")
    again, applied = reopened(tmp_path / "state")
    assert (again.names, applied) == (["a", "b"], Applied(2, b"one"))
    assert again.checkpoint() == 2
    assert machine.checkpoint() == 3
    assert reopened(tmp_path / "state")[1] == Applied(3, b"two")


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
def test_a_crash_while_it_is_written_leaves_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    machine = Names(str(tmp_path / "state"))
    machine.open()
    machine.apply(items(1, ["a"]), b"")
    machine.checkpoint()
    machine.apply(items(2, ["b"]), b"")

    def crash(*_: object) -> None:
        raise OSError(errno.EIO, "crash")

    with monkeypatch.context() as broken:
        if step == "open":
            broken.setattr("builtins.open", crash)
        else:
            broken.setattr(os, step, crash)
        with pytest.raises(OSError, match="crash"):
            machine.checkpoint()
    again, applied = reopened(tmp_path / "state")
    assert (again.names, applied.index) == (["a"], 1)


def test_without_room_the_log_is_kept_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Names(str(tmp_path / "state"))
    machine.open()
    machine.apply(items(1, ["a"]), b"")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "no room")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        assert machine.checkpoint() == 0
    assert machine.checkpoint() == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "state"
    machine = Names(str(path))
    machine.open()
    machine.apply(items(1, ["a", "b", "c"]), b"notes")
    machine.checkpoint()
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-3] ^= 1
    elif damage == "cut":
        del content[-1]
    elif damage == "empty":
        content.clear()
    else:
        content[:] = b"Dear diary, today nothing happened at all"
    path.write_bytes(content)
    with pytest.raises(Fatal, match="Keep the directory"):
        reopened(path)


def test_a_snapshot_is_of_one_moment_and_another_member_goes_on_from_it(tmp_path: Path) -> None:
    machine = Names(str(tmp_path / "one"))
    machine.open()
    machine.apply(items(1, ["a", "b"]), b"notes")
    stop = threading.Event()

    def apply() -> None:
        index = 3
        while not stop.is_set():
            machine.apply(items(index, ["x"]), b"%d" % index)
            index += 1

    applying = threading.Thread(target=apply)
    applying.start()
    try:
        told = [machine.write_snapshot(str(tmp_path / f"copy{number}")) for number in range(20)]
    finally:
        stop.set()
        applying.join()
    for number, applied in enumerate(told):
        other = Names(str(tmp_path / "other"))
        other.install_snapshot(str(tmp_path / f"copy{number}"))
        assert other.open() == applied
        assert len(other.names) == applied.index
        assert applied.notes in (b"notes", b"%d" % applied.index)
        assert not (tmp_path / f"copy{number}").exists()
        assert other.apply(items(applied.index + 1, ["next"]), b"") == [applied.index + 1]


def test_nodes_are_compared_at_indexes_that_all_pass_whatever_their_batches(tmp_path: Path) -> None:
    names = [f"n{number}" for number in range(2 * POINT_INTERVAL + 10)]
    one, two, wrong = (Names(str(tmp_path / name)) for name in ("1", "2", "3"))
    one.apply(items(1, names), b"")
    for place, name in enumerate(names):
        two.apply(items(1 + place, [name]), b"")
    wrong.apply(items(1, ["other", *names[1:]]), b"")
    index, digest = one.digest()
    assert index == 2 * POINT_INTERVAL
    assert two.digest() == (index, digest)
    assert one.digest_at(POINT_INTERVAL) == two.digest_at(POINT_INTERVAL) != wrong.digest_at(POINT_INTERVAL)
    assert one.digest_at(7) is None
    assert Names(str(tmp_path / "4")).digest() == (0, 0)
