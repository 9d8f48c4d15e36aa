"""Survivors of a lost majority that disagree: which one is built on, what is kept, and what is said of the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from smtpraft.cluster import envelope
from smtpraft.cluster.backup import check_file
from smtpraft.cluster.members import Member, encode_found
from smtpraft.cluster.salvage import CannotRecover, Salvage
from smtpraft.fastlog import ENTRY_NORMAL, Log
from smtpraft.spool import commands
from smtpraft.spool.machine import SpoolMachine
from smtpraft.spool.types import Envelope, number_of
from smtpraft.storage import HardState, Identity, RealDisk, Standing, Wal
from smtpraft.types import NodeId

CLUSTER = b"0123456789abcdef"
VOTERS = [NodeId(f"n{number}") for number in range(1, 6)]
FOUND = encode_found([Member(node, 1 << 40 | number, "127.0.0.1", 5000 + number) for number, node in enumerate(VOTERS)])
OPEN = envelope.encode_open(bytes(16), NodeId("n1"))
SESSION = 2  # the index of OPEN


def accept(seq: int, body: bytes) -> bytes:
    command = commands.encode_accept(Envelope("a@example.org", ("b@example.org",)), [body])
    return envelope.encode_command(SESSION, seq, 0, command)


COMMON = [(1, FOUND), (1, OPEN), (1, accept(1, b"all have it"))]


def node_directory(tmp_path: Path, node: str, entries: list[tuple[int, bytes]], commit: int) -> str:
    """Return the data directory of a node that has stored these entries, (term, payload), and applied none yet."""
    directory = tmp_path / node
    directory.mkdir()
    (directory / "spool").mkdir()
    identity = Identity.open(str(directory), cluster_id=CLUSTER, node_id=node, election="raft")
    log = Log()
    wal, _ = Wal.open(
        RealDisk(),
        str(directory / "wal"),
        cluster_id=CLUSTER,
        node_id=node,
        log=log,
        segment_bytes=64 * 1024,
        background=False,
        promises=str(directory),
    )
    for index, (term, payload) in enumerate(entries, 1):
        wal.write([log.append(term, 0, ENTRY_NORMAL, [payload])], index, index, HardState(term, "", min(commit, index)))
    wal.close()
    identity.record(Standing.ADMITTED)
    identity.close()
    return str(directory)


def make_machine(directory: str, node: NodeId, read_entry: Callable[[int], bytes]) -> SpoolMachine:
    machine = SpoolMachine(f"{directory}/spool/queue.db", node)
    machine.read_entry = read_entry
    return machine


def salvaged(tmp_path: Path, *directories: str) -> Salvage:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    return Salvage(directories, str(workspace), make_machine)


def test_the_later_term_wins_over_the_longer_log(tmp_path: Path) -> None:
    """Raft §5.4.1. What the longer one has more was never on a majority, or the later leader would have had it."""
    later = node_directory(tmp_path, "n1", [*COMMON, (3, accept(2, b"of term 3"))], commit=3)
    longer = node_directory(tmp_path, "n2", [*COMMON, (2, accept(2, b"x")), (2, accept(3, b"y"))], commit=3)
    salvage = salvaged(tmp_path, longer, later)
    try:
        assert salvage.base().node_id == "n1"
        assert salvage.committed_index == 3
        assert [index for index, _ in salvage.unconfirmed()] == [4]
        assert [(directory, index) for directory, index, _ in salvage.dropped()] == [(longer, 4), (longer, 5)]
        info = salvage.save(str(tmp_path / "file"))
    finally:
        salvage.close()
    assert not (tmp_path / "workspace").exists()
    assert check_file(str(tmp_path / "file"))[0] == info
    assert (info.index, info.term, info.conf_state.voters) == (4, 3, tuple(VOTERS))
    state = tmp_path / "state"
    state.write_bytes((tmp_path / "file").read_bytes()[-info.size_bytes :])
    machine = SpoolMachine(str(state), NodeId("n1"))
    machine.open()
    messages = machine.reader.page(0, 10)
    bodies = machine.reader.bodies([message.parts[0] for message in messages])
    assert [bodies[number_of(message.id)] for message in messages] == [b"all have it", b"of term 3"]
    machine.close()


def test_with_a_majority_nothing_is_lost_and_nothing_done(tmp_path: Path) -> None:
    directories = [node_directory(tmp_path, node, COMMON, commit=3) for node in ("n1", "n2", "n3")]
    salvage = salvaged(tmp_path, *directories)
    with pytest.raises(CannotRecover, match="majority"):
        salvage.save(str(tmp_path / "file"))
    salvage.close()
    assert not (tmp_path / "file").exists()


def test_a_directory_that_is_none_is_named_and_passed_over(tmp_path: Path) -> None:
    good = node_directory(tmp_path, "n1", COMMON, commit=3)
    (tmp_path / "empty").mkdir()
    salvage = salvaged(tmp_path, str(tmp_path / "empty"), good)
    assert "identity.json" in salvage.survivors[0].problem
    assert salvage.base().directory == good
    salvage.close()


def test_a_node_that_runs_is_not_touched(tmp_path: Path) -> None:
    directory = node_directory(tmp_path, "n1", COMMON, commit=3)
    identity = Identity.open(directory, cluster_id=CLUSTER, node_id="n1", election="raft")
    with pytest.raises(CannotRecover, match="in use"):
        salvaged(tmp_path, directory)
    identity.close()
    assert not (tmp_path / "workspace").exists()
