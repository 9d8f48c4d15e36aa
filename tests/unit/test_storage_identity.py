"""Whose data directory it is, and that only one process works in it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from smtpraft.errors import NewerFormat
from smtpraft.storage import DirectoryInUse, Identity, IdentityMismatch, Standing
from smtpraft.storage.identity import Facts, claim_directory
from smtpraft.storage.segment import segment_name
from smtpraft.storage.simdisk import Outcome, PowerCut, SimulatedDisk

CLUSTER = b"0123456789abcdef"
WANTED = Facts(CLUSTER, "node-1", "raft")


def take(directory: Path, *, node_id: str = "node-1", cluster_id: bytes = CLUSTER, election: str = "raft") -> Identity:
    return Identity.open(str(directory), cluster_id=cluster_id, node_id=node_id, election=election)


def test_no_flipped_bit_makes_it_another_directory(tmp_path: Path) -> None:
    """Another incarnation, another standing, another founder: whoever believed it would vote as somebody else."""
    first = take(tmp_path)
    first.record(Standing.FOUNDER, {"node-1": first.facts.incarnation, "node-2": 1 << 40})
    first.note_company(True)
    first.close()
    path = tmp_path / "identity.json"
    data = path.read_bytes()
    (tmp_path / "wal").mkdir()
    (tmp_path / "wal" / segment_name(1, 1)).touch()
    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with contextlib.suppress(IdentityMismatch):
            again = take(tmp_path)
            again.close()
            assert again.facts == first.facts, changed


def test_a_directory_belongs_to_whoever_used_it_first(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    first = take(directory)
    first.close()
    written = json.loads((directory / "identity.json").read_text())
    assert isinstance(written.pop("sum"), int)
    assert written == {
        "format": 1,
        "cluster_id": CLUSTER.hex(),
        "cluster_name": "",
        "node_id": "node-1",
        "election": "raft",
        "incarnation": f"{first.facts.incarnation:016x}",
        "standing": "fresh",
        "founders": {},
        "company": False,
    }
    again = take(directory)
    again.close()
    assert again.facts == first.facts


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
    with pytest.raises(NewerFormat, match="format 2"):
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
            claim_directory(disk, "/data", WANTED)
        except PowerCut:
            finished = False
        else:
            finished = True
        for image in (disk.crash(outcome, seed) for outcome in Outcome for seed in range(5)):
            assert not finished or "identity.json" in image.list_directory("/data")
            claim_directory(image, "/data", WANTED)
        if finished:
            break
    assert number > 4


def test_no_two_directories_have_one_incarnation(tmp_path: Path) -> None:
    incarnations = set()
    for name in ("a", "b", "c"):
        identity = take(tmp_path / name)
        identity.close()
        incarnations.add(identity.facts.incarnation)
    assert len(incarnations) == 3
    assert min(incarnations) >= 1 << 32


def begin_log(directory: Path) -> None:
    (directory / "wal").mkdir()
    (directory / "wal" / segment_name(1, 1)).touch()


def test_what_a_node_takes_part_as_survives_a_restart(tmp_path: Path) -> None:
    identity = take(tmp_path)
    assert identity.facts.standing is Standing.FRESH
    begin_log(tmp_path)
    identity.record(Standing.FOUNDER, {"node-1": identity.facts.incarnation, "node-2": 1 << 33})
    identity.close()
    again = take(tmp_path)
    again.close()
    assert again.facts == identity.facts
    assert again.facts.standing is Standing.FOUNDER
    assert again.facts.founders["node-2"] == 1 << 33


def test_a_log_that_is_gone_is_not_begun_anew(tmp_path: Path) -> None:
    """R15: identity.json is left in a directory whose log was deleted; the node would vote anew on its promises."""
    identity = take(tmp_path)
    begin_log(tmp_path)
    identity.record(Standing.FOUNDER, {"node-1": identity.facts.incarnation})
    identity.close()
    (tmp_path / "wal" / segment_name(1, 1)).unlink()
    for _ in range(2):
        with pytest.raises(IdentityMismatch, match=r"the log is gone.*member replace"):
            take(tmp_path)
        shutil.rmtree(tmp_path / "wal", ignore_errors=True)


def test_a_directory_of_a_release_without_incarnations_gets_one(tmp_path: Path) -> None:
    old = {"format": 1, "cluster_id": CLUSTER.hex(), "node_id": "node-1", "election": "raft"}
    for name, has_log in (("began", True), ("never", False)):
        directory = tmp_path / name
        directory.mkdir()
        (directory / "identity.json").write_text(json.dumps(old))
        if has_log:
            begin_log(directory)
        first, again = take(directory), None
        first.close()
        again = take(directory)
        again.close()
        assert first.facts == again.facts
        assert first.facts.incarnation
        assert first.facts.standing is (Standing.UPGRADED if has_log else Standing.FRESH)


def test_once_begun_the_name_of_the_cluster_counts_and_its_id_stays(tmp_path: Path) -> None:
    """The id is made of the first list of peers, which may have changed since in the configuration."""

    def named(name: str, cluster_id: bytes) -> Identity:
        return Identity.open(str(tmp_path), cluster_id=cluster_id, node_id="node-1", election="raft", cluster_name=name)

    identity = named("mail", CLUSTER)
    identity.close()
    with pytest.raises(IdentityMismatch, match="belongs to cluster 'mail'"):
        named("mail", bytes(16))  # nothing has begun, and a list of peers that is wrong is found out
    begin_log(tmp_path)
    identity = named("mail", CLUSTER)
    identity.record(Standing.FOUNDER, {"node-1": identity.facts.incarnation})
    identity.close()
    again = named("mail", bytes(16))
    again.close()
    assert again.facts.cluster_id == CLUSTER
    with pytest.raises(IdentityMismatch, match=r"belongs to cluster 'mail'.*this is cluster 'post'. Set cluster.name"):
        named("post", CLUSTER)
