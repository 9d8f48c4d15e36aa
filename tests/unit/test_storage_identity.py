"""Whose data directory it is, and that only one process works in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from smtpraft.storage import DirectoryInUse, Identity, IdentityMismatch
from smtpraft.storage.identity import claim
from smtpraft.storage.simdisk import Outcome, PowerCut, SimulatedDisk

CLUSTER = b"0123456789abcdef"


def take(directory: Path, *, node_id: str = "node-1", cluster_id: bytes = CLUSTER, election: str = "raft") -> Identity:
    return Identity.open(str(directory), cluster_id=cluster_id, node_id=node_id, election=election)


def test_a_directory_belongs_to_whoever_used_it_first(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    take(directory).close()
    assert json.loads((directory / "identity.json").read_text()) == {
        "format": 1,
        "cluster_id": CLUSTER.hex(),
        "node_id": "node-1",
        "election": "raft",
    }
    take(directory).close()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"node_id": "node-2"}, "belongs to node 'node-1', this is node 'node-2'. Set node.id"),
        ({"cluster_id": bytes(16)}, "belongs to cluster 3031.*Set cluster.name"),
        ({"election": "lowest-id"}, "cluster.election = 'raft', the setting is now 'lowest-id'"),
    ],
)
def test_another_one_is_refused_and_told_what_to_do(tmp_path: Path, change: dict[str, str], says: str) -> None:
    take(tmp_path).close()
    with pytest.raises(IdentityMismatch, match=says):
        take(tmp_path, **change)  # type: ignore[arg-type]
    take(tmp_path).close()


def test_what_was_written_without_votes_is_no_raft_log(tmp_path: Path) -> None:
    take(tmp_path, election="lowest-id").close()
    with pytest.raises(IdentityMismatch, match="'lowest-id', the setting is now 'raft'"):
        take(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": "x"}'])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "identity.json").write_text(text)
    with pytest.raises(IdentityMismatch, match="damaged"):
        take(tmp_path)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "identity.json").write_text('{"format": 2}')
    with pytest.raises(IdentityMismatch, match="format 2"):
        take(tmp_path)


def test_a_log_without_an_owner_is_refused(tmp_path: Path) -> None:
    (tmp_path / "wal").mkdir()
    with pytest.raises(IdentityMismatch, match="nobody can tell whose it is"):
        take(tmp_path)


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    first = take(tmp_path)
    with pytest.raises(DirectoryInUse, match=f"process {os.getpid()}"):
        take(tmp_path)
    first.close()
    first.close()
    take(tmp_path).close()


def test_a_process_that_dies_gives_the_directory_back(tmp_path: Path) -> None:
    program = (
        "import sys, os, signal; from smtpraft.storage import Identity\n"
        f"Identity.open({str(tmp_path)!r}, cluster_id={CLUSTER!r}, node_id='node-1', election='raft')\n"
        "print('mine', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"mine\n"
        with pytest.raises(DirectoryInUse, match=f"process {process.pid}"):
            take(tmp_path)
        process.kill()
        process.wait()
    take(tmp_path).close()


def test_a_power_cut_leaves_it_whole_or_absent() -> None:
    number = 0
    while True:
        number += 1
        disk = SimulatedDisk()
        disk.make_directory("/data")

        def cut(operation: object, disk: SimulatedDisk = disk, number: int = number) -> None:
            if disk.operations >= number:
                raise PowerCut

        disk.hook = cut
        try:
            claim(disk, "/data", cluster_id=CLUSTER, node_id="node-1", election="raft")
        except PowerCut:
            finished = False
        else:
            finished = True
        for image in (disk.crash(outcome, seed) for outcome in Outcome for seed in range(5)):
            assert not finished or "identity.json" in image.list_directory("/data")
            claim(image, "/data", cluster_id=CLUSTER, node_id="node-1", election="raft")
        if finished:
            break
    assert number > 4
