"""A member that was away until the log no longer reaches back to it is sent a snapshot: whole nodes, real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from time import monotonic

import msgspec
import pytest

from smtpraft.cluster import Applied, Node, OutcomeUnknown, retention, snapshots
from smtpraft.consensus import ConfState
from smtpraft.types import NodeId

from .test_cluster_node import Cluster

pytestmark = [pytest.mark.timeout(60)]

N1, N2, N3 = NodeId("n1"), NodeId("n2"), NodeId("n3")
VALUE = "x" * 20_000


@pytest.fixture
async def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setattr(retention, "PRESENT_S", 0.5)
    cluster = Cluster(tmp_path, 3, max_log_entries=10, snapshot_threshold=10)
    await cluster.start_all()
    yield cluster
    for node_id in list(cluster.nodes):
        await cluster.stop(node_id)


async def wait_for(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = monotonic() + timeout_s
    while not condition():
        assert monotonic() < deadline, "not in time"
        await asyncio.sleep(0.02)


async def fill(node: Node, count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        await node.replicate(f"k{number}={number}{VALUE}".encode())


def value(cluster: Cluster, node_id: NodeId, number: int) -> object:
    return cluster.machines[node_id].get(f"k{number}")  # type: ignore[attr-defined]


def installs(node: Node) -> int:
    return node._driver.snapshots.installed_count


def leader(cluster: Cluster) -> Node:
    return next(node for node in cluster.nodes.values() if node.is_leader)


async def left_behind(cluster: Cluster, node_id: NodeId, count: int = 120) -> None:
    """Stop a node, and go on without it until the log has forgotten what it needs."""
    await wait_for(lambda: any(node.is_leader for node in cluster.nodes.values()))
    await fill(cluster.nodes[node_id], 1, 1000)
    applied = cluster.nodes[node_id].applied_index
    await cluster.stop(node_id)
    await wait_for(lambda: any(node.is_leader for node in cluster.nodes.values()))
    await asyncio.sleep(0.7)  # it is not waited for any more
    await fill(leader(cluster), count)
    await wait_for(lambda: all(node.status().first_index > applied + 1 for node in cluster.nodes.values()))


async def test_a_member_that_was_away_catches_up_by_snapshot(cluster: Cluster) -> None:
    await left_behind(cluster, N3)
    node = await cluster.start(N3)
    await wait_for(lambda: installs(node) == 1 and node.applied_index == leader(cluster).applied_index)
    assert [value(cluster, N3, number) for number in (0, 60, 119)] == [f"{n}{VALUE}" for n in (0, 60, 119)]
    await node.replicate(b"after=it")
    status = node.status()
    assert status.first_index > 100
    assert status.commit_index == status.applied_index == status.last_index
    assert sorted(path.name for path in (cluster.folder / "n3" / "snapshot").iterdir()) == []


async def test_it_starts_again_from_what_was_installed(cluster: Cluster) -> None:
    await left_behind(cluster, N2)
    node = await cluster.start(N2)
    await wait_for(lambda: installs(node) == 1 and node.applied_index == leader(cluster).applied_index)
    await cluster.stop(N2)
    node = await cluster.start(N2)
    assert value(cluster, N2, 119) == f"119{VALUE}"
    await node.replicate(b"after=it")
    assert installs(node) == 0


async def test_two_members_share_one_copy_and_it_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr(retention, "PRESENT_S", 0.5)
    monkeypatch.setattr(snapshots, "COPY_IDLE_S", 1.0)
    cluster = Cluster(tmp_path, 5, max_log_entries=10, snapshot_threshold=10)
    await cluster.start_all()
    try:
        await wait_for(lambda: any(node.is_leader for node in cluster.nodes.values()))
        away = [node_id for node_id, node in cluster.nodes.items() if not node.is_leader][:2]
        for node_id in away:
            await cluster.stop(node_id)
        await asyncio.sleep(0.7)
        await fill(leader(cluster), 120)
        first = leader(cluster)
        made: list[str] = []
        write = cluster.machines[first.id].write_snapshot  # type: ignore[attr-defined]

        def counted(path: str) -> Applied:
            made.append(path)
            applied: Applied = write(path)
            return applied

        monkeypatch.setattr(cluster.machines[first.id], "write_snapshot", counted)
        nodes = await asyncio.gather(*(cluster.start(node_id) for node_id in away))
        await wait_for(lambda: [installs(node) for node in nodes] == [1, 1])
        await wait_for(lambda: all(node.applied_index == first.applied_index for node in nodes))
        assert len(made) == 1
        await wait_for(lambda: not list((tmp_path / first.id / "snapshot").iterdir()))
    finally:
        for node_id in list(cluster.nodes):
            await cluster.stop(node_id)


async def test_a_copy_from_before_a_member_was_added_is_not_sent_to_it(cluster: Cluster) -> None:
    """It could not restore from it, and would be sent the same one for ever."""
    await left_behind(cluster, N3)
    snapshots = leader(cluster)._driver.snapshots
    await snapshots._renew()
    copy = snapshots._copy
    assert copy is not None
    others = tuple(node for node in copy.info.conf_state.voters if node != N3)
    copy.info = msgspec.structs.replace(copy.info, conf_state=ConfState(voters=others))
    node = await cluster.start(N3)
    await wait_for(lambda: installs(node) == 1 and node.applied_index == leader(cluster).applied_index)


async def test_what_a_member_had_proposed_before_the_snapshot_is_unknown(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was applied, or never will be: a node that saw neither must not say one of the two."""
    await wait_for(lambda: any(node.is_leader for node in cluster.nodes.values()))
    node = next(node for node in cluster.nodes.values() if not node.is_leader)
    # Its acknowledgements come through, what the others send does not: as behind a half-dead switch.
    await node.replicate(b"before=it")
    receive = node._driver._receive
    deaf = True
    monkeypatch.setattr(node._driver, "_receive", lambda peer, frames: None if deaf else receive(peer, frames))
    asking = asyncio.create_task(node.replicate(b"asked=for", deadline_s=20))
    await asyncio.sleep(0.7)
    others = [other for other in cluster.nodes.values() if other is not node]
    await wait_for(lambda: any(other.is_leader for other in others))
    applied = node.applied_index
    await fill(next(other for other in others if other.is_leader), 120)
    await wait_for(lambda: all(other.status().first_index > applied + 1 for other in others))
    deaf = False
    with pytest.raises(OutcomeUnknown):
        await asking
    await wait_for(lambda: installs(node) == 1)
    await node.replicate(b"after=it")
