"""The second election rule: the lowest id that can be reached leads. For development only; unsafe under partitions."""

from __future__ import annotations

import pytest

from smtpraft.consensus import LogConflict, MessageType, Role
from smtpraft.consensus.lowest_id import _own_term_after
from smtpraft.types import NodeId

from .cluster import Cluster
from .solo import N1, N2, N3, Solo, of_type

ROUNDS = 60


def lowest_id_cluster(size: int = 3, seed: int = 1) -> Cluster:
    return Cluster(seed, size, election="lowest-id")


def leader_of(cluster: Cluster) -> str:
    """Return who leads, by the word of all that run."""
    (leader,) = {server.core.leader_id for server in cluster.live()}
    return leader


@pytest.mark.parametrize("size", [1, 3, 5])
def test_the_lowest_id_leads(size: int) -> None:
    cluster = lowest_id_cluster(size)
    cluster.settle(ROUNDS)
    assert leader_of(cluster) == "n1"


def test_the_next_takes_over_and_hands_back() -> None:
    """n1 dies: n2 leads. n1 is back: it follows, catches up, and leads."""
    cluster = lowest_id_cluster()
    cluster.settle(ROUNDS)
    cluster.servers[N1].crash()
    cluster.settle(ROUNDS)
    assert leader_of(cluster) == "n2"
    cluster.propose(cluster.servers[N2], 5)
    cluster.drain()
    commit_index = cluster.servers[N3].core.commit_index
    cluster.restart(cluster.servers[N1])
    cluster.settle(ROUNDS)
    assert leader_of(cluster) == "n1"
    assert cluster.servers[N1].core.commit_index > commit_index


def test_terms_grow_and_belong_to_one_node() -> None:
    """No two nodes ever lead in the same term, votes or not."""
    cluster = lowest_id_cluster()
    seen: dict[int, str] = {}
    for crashed in (None, N1, None, N2, None, N1, None):
        if crashed is not None:
            cluster.servers[crashed].crash()
        for _ in range(ROUNDS):
            cluster.tick_all()
            cluster.drain()
            for server in cluster.leaders_now():
                assert seen.setdefault(server.core.term, server.id) == server.id
        cluster.heal()
    terms = {node: {_own_term_after(cluster.servers[node].core.raft) % 3} for node in (N1, N2, N3)}
    assert terms == {N1: {0}, N2: {1}, N3: {2}}


def test_the_own_term_is_on_disk_before_its_leader_leads() -> None:
    """Or it could be used twice, after a crash."""
    solo = Solo(election="lowest-id")
    solo.core.campaign()
    assert [message.type for message in solo.outputs()] == [MessageType.PRE_VOTE] * 2
    for node in (N2, N3):
        solo.receive(MessageType.PRE_VOTE_RESP, node, term=solo.core.term + 1)
    assert solo.role() is Role.CANDIDATE
    solo.store()
    assert solo.role() is Role.LEADER


def test_silence_counts_as_consent() -> None:
    """This is what makes the rule unsafe under partitions."""
    solo = Solo(election="lowest-id")
    solo.core.campaign()
    for _ in range(5):
        assert solo.role() is Role.PRE_CANDIDATE
        solo.core.tick()
    solo.store()
    assert solo.role() is Role.LEADER


def test_who_has_a_newer_log_or_hears_a_leader_objects() -> None:
    for terms, heartbeat, sender, reject in (
        ([1], False, N2, True),  # n1 has the lower id, and as much.
        ([], False, N2, False),  # n2 has more.
        ([1, 1], False, N2, True),
        ([], True, N2, True),
    ):
        solo = Solo(terms=terms, election="lowest-id")
        if heartbeat:
            solo.receive(MessageType.HEARTBEAT, N3, term=1)
        solo.receive(MessageType.PRE_VOTE, sender, term=9, index=1, log_term=1)
        answers = of_type(solo.store(), MessageType.PRE_VOTE_RESP)
        assert [answer.reject for answer in answers] == [reject]


def test_an_objection_ends_the_attempt() -> None:
    solo = Solo(election="lowest-id")
    solo.core.campaign()
    solo.receive(MessageType.PRE_VOTE_RESP, N2, term=1, reject=True)
    assert solo.role() is Role.FOLLOWER


def test_a_lower_id_asks_for_leadership_when_its_log_has_met_the_leaders() -> None:
    """Before that it would only keep the leader from taking proposals."""
    solo = Solo(election="lowest-id", terms=[1])
    for _ in range(30):
        solo.receive(MessageType.HEARTBEAT, N2, term=2)
        solo.core.tick()
    assert of_type(solo.outputs(), MessageType.TRANSFER_LEADER) == []
    solo.append(2, [2], prev_term=1, term=2)
    for _ in range(10):
        solo.receive(MessageType.HEARTBEAT, N2, term=2)
        solo.core.tick()
    (wish,) = of_type(solo.outputs(), MessageType.TRANSFER_LEADER)
    assert (wish.to, wish.sender) == (N2, N1)


def test_both_halves_of_a_cut_network_find_a_leader_but_one_commits() -> None:
    """Commit still takes a majority of all voters."""
    cluster = Cluster(1, 3, election="lowest-id", check_quorum=False)
    cluster.settle(ROUNDS)
    cluster.cut = {(a, b) for a in cluster.ids for b in cluster.ids if (a == N1) != (b == N1)}
    cluster.settle(ROUNDS)
    assert {server.id for server in cluster.leaders_now()} == {N1, N2}
    before = cluster.servers[N1].core.commit_index
    for node in (N1, N2):
        cluster.propose(cluster.servers[node])
    cluster.drain()
    assert cluster.servers[N1].core.commit_index == before
    assert cluster.servers[N2].core.commit_index > before


def test_a_node_stops_rather_than_let_what_is_committed_be_replaced() -> None:
    """What votes prevent can happen here: a leader without what others have committed."""
    solo = Solo(election="lowest-id", terms=[1, 1, 1], applied=3)
    with pytest.raises(LogConflict):
        solo.append(2, [5], prev_term=1, term=5, sender=NodeId("n0"))


@pytest.mark.parametrize("seed", range(10))
def test_without_partitions_the_promises_hold(seed: int) -> None:
    """Crashes one at a time, nothing lost on the way."""
    cluster = lowest_id_cluster(3 + seed % 3, seed)
    for _ in range(6):
        cluster.settle(ROUNDS)
        for server in cluster.leaders_now():
            cluster.propose(server, 3)
        cluster.drain()
        server = cluster.random.choice(list(cluster.servers.values()))
        if server.up:
            server.crash()
        cluster.settle(ROUNDS)
        cluster.heal()
    cluster.settle(ROUNDS)
    assert leader_of(cluster) == "n1"
    assert len({server.applied for server in cluster.live()}) == 1
