"""Linearizable reads on whole nodes: by a round of heartbeats, or from the leader's lease; on followers too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from smtpraft.cluster import Node
from smtpraft.errors import NotReplicated, SmtpRaftError

from .test_cluster_node import Cluster, wait_until

pytestmark = [pytest.mark.timeout(60)]


@pytest.fixture(params=[False, True], ids=["read-index", "lease-reads"])
async def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cluster]:
    # Long enough for a machine that has much else to do: an election would begin the counts anew.
    made = Cluster(tmp_path, 3, lease_reads=request.param, election_timeout_ms=1000, lease_ms=5000)
    await made.start_all()
    yield made
    await made.stop_all()


def rounds(node: Node) -> int:
    """How many reads this leadership has confirmed by asking the others."""
    return node._driver.core.raft.reads.confirmed


async def test_reads_on_all_nodes_see_what_was_written_before(cluster: Cluster) -> None:
    leader = await cluster.leader()
    await leader.replicate(b"k=0")
    confirmed = rounds(leader)
    for number in range(1, 10):
        for node in cluster.nodes.values():
            await node.replicate(b"k=%d" % number)
            for reader in cluster.nodes.values():
                index = await reader.read_index()
                assert reader.applied_index >= index
                assert cluster.machines[reader.id].get("k") == str(number)  # type: ignore[attr-defined]
    assert leader.is_leader
    if cluster.options["lease_reads"]:
        assert rounds(leader) - confirmed < 40, "of 81 reads; a busy machine may miss heartbeats, and the lease with it"
    else:
        assert rounds(leader) - confirmed >= 81, "each asked after the one before was answered"


async def test_what_is_asked_together_is_one_read_of_the_core(cluster: Cluster) -> None:
    """A thousand readers of one turn share one context, and so one round."""
    leader = await cluster.leader()
    await leader.replicate(b"k=0")
    confirmed = rounds(leader)
    await asyncio.gather(*(leader.read_index() for _ in range(1000)))
    assert rounds(leader) - confirmed <= 1


async def test_a_leader_without_a_majority_answers_no_read(cluster: Cluster) -> None:
    """Its lease runs out before the others can have elected anybody; then it asks, and nobody answers."""
    leader = await cluster.leader()
    await leader.replicate(b"k=0")
    for node_id in [node_id for node_id in cluster.nodes if node_id != leader.id]:
        await cluster.nodes[node_id]._driver.close()  # as if it died: it hands nothing over
    await wait_until(lambda: not leader._driver.core.lease_held())
    with pytest.raises(NotReplicated, match="no majority confirmed the read"):
        await leader.read_index(deadline_s=0.5)


async def test_nobody_forgets_a_leader_whose_lease_is_read_from(cluster: Cluster) -> None:
    leader = await cluster.leader()
    follower = next(node for node in cluster.nodes.values() if node is not leader)
    if cluster.options["lease_reads"]:
        with pytest.raises(SmtpRaftError, match="lease_reads is on"):
            follower.forget_leader()
    else:
        follower.forget_leader()
