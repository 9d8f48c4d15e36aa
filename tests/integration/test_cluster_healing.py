"""Whole nodes whose disks lose what was synced: they heal from the others, or the cluster stops and says so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from smtpraft.cluster import Node, NodeOptions, Peer, abstention
from smtpraft.cluster.settings import derive_cluster_id
from smtpraft.storage import WalCorrupt
from smtpraft.types import NodeId

from .test_cluster_node import Cluster, kv, wait_until

N1, N2, N3 = (NodeId(f"n{number}") for number in (1, 2, 3))
PLACES = 24
PAGE = 4096


def flip(path: Path, random: Random) -> None:
    data = bytearray(path.read_bytes())
    used = len(data.rstrip(b"\0"))
    data[random.randrange(used)] ^= 1 << random.randrange(8)
    path.write_bytes(data)


def swap(path: Path, random: Random) -> None:
    data = bytearray(path.read_bytes())
    pages = len(data.rstrip(b"\0")) // PAGE
    one, other = random.sample(range(max(2, pages)), 2)
    a, b = slice(one * PAGE, one * PAGE + PAGE), slice(other * PAGE, other * PAGE + PAGE)
    data[a], data[b] = data[b], data[a]
    path.write_bytes(data)


def truncate(path: Path, random: Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: random.randrange(len(data.rstrip(b"\0")))])


def delete(path: Path, random: Random) -> None:
    path.unlink()


DAMAGES: list[Callable[[Path, Random], None]] = [flip, flip, swap, truncate, delete]


async def load(cluster: Cluster, count: int, told: list[int]) -> None:
    """Have numbers added to a history; `told` are those that were acknowledged."""
    node = await cluster.leader()
    for _ in range(count):
        number = len(told)
        await node.replicate(b"k%d=%s" % (number, b"x" * (number * 37 % 3000)))
        told.append(number)


async def holds(cluster: Cluster, node_id: NodeId, told: list[int]) -> None:
    await cluster.nodes[node_id].read_index(deadline_s=20)
    machine = cluster.machines[node_id]
    assert [number for number in told if machine.get(f"k{number}") is None] == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", range(0, PLACES, 6))
async def test_a_node_heals_wherever_its_log_was_damaged(tmp_path: Path, seed: int) -> None:
    """One place at a time; then the healed node is half of a majority that keeps every acknowledged command."""
    cluster = Cluster(tmp_path, 3)
    await cluster.start_all()
    told: list[int] = []
    abstained = 0
    for each in range(seed, seed + 6):
        random = Random(each)
        await load(cluster, 15, told)
        victim = random.choice((N1, N2, N3))
        await cluster.stop(victim)
        if random.random() < 0.5:
            await load(cluster, 5, told)
        files = sorted((tmp_path / victim / "wal").glob("*.wal"))
        random.choice(DAMAGES)(random.choice(files), random)
        node = await cluster.start(victim)
        abstained += node.status().abstains
        await wait_until(lambda node=node: not node.status().abstains and node.has_quorum())  # type: ignore[misc]
        await holds(cluster, victim, told)
        # Without one of the others its vote and its log count.
        other = random.choice([node for node in (N1, N2, N3) if node != victim])
        await cluster.stop(other)
        await load(cluster, 5, told)
        await holds(cluster, victim, told)
        await cluster.start(other)
    assert abstained
    for node_id in (N1, N2, N3):
        await holds(cluster, node_id, told)
    await cluster.stop_all()


async def test_a_majority_that_lost_the_same_stops_loudly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can tell what was acknowledged, so nobody may say that it was nothing."""
    monkeypatch.setattr(abstention, "SAY_EVERY_S", 2.0)
    cluster = Cluster(tmp_path, 3)
    await cluster.start_all()
    told: list[int] = []
    await load(cluster, 30, told)
    leader = (await cluster.leader()).id
    await cluster.stop_all()
    victims = [node for node in (N1, N2, N3) if node != leader]
    for victim in victims:
        (path,) = (tmp_path / victim / "wal").glob("*.wal")
        data = bytearray(path.read_bytes())
        data[4 * PAGE : 5 * PAGE] = bytes(PAGE)
        path.write_bytes(data)
    caplog.set_level(logging.WARNING)
    await cluster.start_all()
    await asyncio.sleep(3)
    assert all(cluster.nodes[victim].status().abstains for victim in victims)
    assert not any(node.is_leader or node.has_quorum() for node in cluster.nodes.values())
    assert sum("If a majority of the members lost theirs" in message for message in caplog.messages) == 2
    await cluster.stop_all()


async def test_the_abstention_outlives_a_restart(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 3)
    await cluster.start_all()
    told: list[int] = []
    await load(cluster, 30, told)
    await cluster.stop_all()
    delete(next((tmp_path / N1 / "wal").glob("*.wal")), Random(1))
    for _ in range(3):  # Alone it gets nothing back.
        node = await cluster.start(N1)
        await asyncio.sleep(0.5)
        assert node.status().abstains
        await cluster.stop(N1)
    await cluster.start_all()
    await wait_until(lambda: not cluster.nodes[N1].status().abstains)
    await holds(cluster, N1, told)
    await cluster.stop_all()
    node = await cluster.start(N1)
    assert not node.status().abstains
    await cluster.stop_all()


async def test_a_log_that_ends_before_the_state_machine_was_damaged(tmp_path: Path) -> None:
    """No trace of it in the log: the state machine alone knows that there was more."""
    cluster = Cluster(tmp_path, 3)
    await cluster.start_all()
    told: list[int] = []
    await load(cluster, 10, told)
    await asyncio.sleep(0.7)
    await cluster.stop(N1)
    folder = tmp_path / N1
    copy = {path: path.read_bytes() for path in [*folder.glob("wal/*.wal"), folder / "promises"]}
    await cluster.start(N1)
    await load(cluster, 20, told)
    await holds(cluster, N1, told)
    await cluster.stop(N1)
    for path, data in copy.items():
        path.write_bytes(data)
    node = await cluster.start(N1)
    assert node.status().abstains
    await wait_until(lambda: not node.status().abstains)
    await holds(cluster, N1, told)
    await cluster.stop_all()


async def test_a_state_machine_that_was_lost_comes_back_as_a_snapshot(tmp_path: Path) -> None:
    """What it would need of its own log is compacted."""
    cluster = Cluster(tmp_path, 3, max_log_entries=10, snapshot_threshold=10)
    await cluster.start_all()
    told: list[int] = []
    await load(cluster, 20, told)
    leader = await cluster.leader()
    for _ in range(60):
        await leader.replicate(b"large=" + b"x" * 100_000)
    await holds(cluster, N1, told)
    await wait_until(lambda: cluster.nodes[N1]._driver.wal.first_index > 20)
    await cluster.stop(N1)
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"n1.db{suffix}").unlink(missing_ok=True)
    node = await cluster.start(N1)
    assert node.status().abstains
    await wait_until(lambda: not node.status().abstains)
    await holds(cluster, N1, told)
    await cluster.stop_all()


async def test_a_node_of_its_own_refuses_a_damaged_log(tmp_path: Path) -> None:
    """There is nobody to get it from."""
    cluster = Cluster(tmp_path, 1)
    await cluster.start_all()
    told: list[int] = []
    await load(cluster, 10, told)
    await cluster.stop_all()
    (path,) = (tmp_path / N1 / "wal").glob("*.wal")
    data = bytearray(path.read_bytes())
    data[4 * PAGE : 5 * PAGE] = bytes(PAGE)
    path.write_bytes(data)
    with pytest.raises(WalCorrupt):
        await cluster.start(N1)
    await cluster.stop_all()


async def test_a_node_that_began_alone_and_grew_heals_from_the_others(tmp_path: Path) -> None:
    """Its configuration names nobody: that it has company is in its data directory."""
    cluster = Cluster(tmp_path, 2)
    one, two = cluster.peers

    async def start(peer: Peer, **options: object) -> Node:
        machine = kv.KeyValue(str(tmp_path / f"{peer.id}.db"))
        made = NodeOptions(
            peer.id,
            str(tmp_path / peer.id),
            derive_cluster_id("grown", [N1]),
            (peer.host, peer.port),
            cluster_name="grown",
            secret=b"a secret of thirty-two bytes or so",
            segment_bytes=1024 * 1024,
            **options,  # type: ignore[arg-type]
        )
        node = Node(made, machine)
        await node.start()
        cluster.nodes[peer.id], cluster.machines[peer.id] = node, machine
        return node

    first = await start(one)
    await wait_until(lambda: first.has_quorum())
    told: list[int] = []
    await load(cluster, 10, told)
    second = await start(two, join=((one.host, one.port),))
    await first.change_members("add", members=[f"{two.id}={two.host}:{two.port}"])
    await wait_until(lambda: second.has_quorum() and len(first.members()) == 2)
    await load(cluster, 10, told)
    await asyncio.sleep(0.7)
    await cluster.stop(N1)
    (path,) = (tmp_path / N1 / "wal").glob("*.wal")
    data = bytearray(path.read_bytes())
    data[4 * PAGE : 5 * PAGE] = bytes(PAGE)
    path.write_bytes(data)
    first = await start(one)
    assert first.status().abstains
    await cluster.stop_all()
