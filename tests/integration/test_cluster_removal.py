"""What those who stay know when a leader goes, and who takes over, and whose a lease is; whole nodes in one process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic

import pytest

from smtpraft.cluster import Node, envelope
from smtpraft.cluster.requests import Declined
from smtpraft.consensus import ChangeSingle, ChangeType, ConfChangeV2

from .test_cluster_node import Cluster, wait_until

pytestmark = [pytest.mark.timeout(60)]


async def founded(folder: Path, size: int) -> tuple[Cluster, Node, list[Node]]:
    """Return a cluster whose members are in the log, its leader and the others."""
    cluster = Cluster(folder, size)
    await cluster.start_all()
    leader = await cluster.leader()
    others = [node for node in cluster.nodes.values() if node is not leader]
    await wait_until(lambda: all(node._driver.enrolment.roster.founded for node in cluster.nodes.values()))
    await wait_until(lambda: all(node.has_quorum() for node in others))
    return cluster, leader, others


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made, _, _ = await founded(tmp_path, 3)
    yield made
    await made.stop_all()


async def test_who_stays_knows_that_the_leader_was_removed_though_nobody_leads_now(cluster: Cluster) -> None:
    """Nobody takes over from it, and its last heartbeat was before its removal was committed."""
    leader = await cluster.leader()
    others = [node for node in cluster.nodes.values() if node is not leader]
    for node in others:
        node._driver.stand_aside_until = monotonic() + 30
    await wait_until(lambda: all(node._driver.core.barred for node in others))
    assert await leader.change_members("remove", node=leader.id, force=True) == leader.id
    await cluster.stop(leader.id)
    await wait_until(lambda: all(leader.id not in node._driver.enrolment.roster.members for node in others), 5)
    for node in others:
        node._driver.stand_aside_until = 0.0
    await (await cluster.leader()).replicate(b"colour=blue")


async def test_a_leader_that_the_others_need_for_an_election_is_not_removed(tmp_path: Path) -> None:
    """Of two voters one alone elects nobody, and would never hear that it need not ask the other."""
    cluster, leader, [other] = await founded(tmp_path, 2)
    other._driver.stand_aside_until = monotonic() + 30
    await wait_until(lambda: other._driver.core.barred)
    with pytest.raises(Declined, match="nobody took leadership over"):
        await leader.change_members("remove", node=leader.id, force=True)
    await other.replicate(b"colour=blue")
    await cluster.stop_all()


async def test_a_leader_whose_disk_hangs_hands_over_to_a_voter(cluster: Cluster) -> None:
    """Though a learner has as much of the log, and was heard of first."""
    leader = await cluster.leader()
    voter, learner = (node for node in cluster.nodes.values() if node is not leader)
    driver = leader._driver
    driver.core.propose_conf_change(ConfChangeV2((ChangeSingle(ChangeType.ADD_LEARNER, learner.id),)))
    driver.want_turn()
    await wait_until(lambda: driver.core.conf_state.learners == (learner.id,))
    driver.heartbeats.disk_lag_ms = {learner.id: 0, voter.id: 0}
    driver.writer.write_age_s = lambda: 60.0  # type: ignore[method-assign]
    await wait_until(lambda: voter.is_leader, 5)


async def test_a_lease_waits_until_the_loop_knows_what_was_applied(cluster: Cluster) -> None:
    """The end of this node's session is applied, but the loop has not heard of it: its work is with others by now."""
    leader = await cluster.leader()
    driver = leader._driver
    await wait_until(lambda: leader.lease_valid())
    held: list[object] = []
    driver.applier._deliver = held.append
    driver.core.propose([envelope.encode_down(driver.proposals.session, [])])
    driver._leader_started_index = driver.entries.last_index  # as if a predecessor had left it
    driver.want_turn()
    driver.heartbeats.holder.give_up()
    await wait_until(lambda: driver.applier.applied_index >= driver._leader_started_index)
    assert held
    assert leader.lease_expires_in_s() == 0
