"""Node leases: the holder always stops before anybody may declare it down."""

from __future__ import annotations

import random

import pytest

from smtpraft.cluster.lease import LeaseGranter, LeaseHolder
from smtpraft.types import NodeId

ME = NodeId("node-1")
OTHER = NodeId("node-2")
LEASE_S = 2.0
WINDOW_S = 0.3


def granter(since: float = 0.0) -> LeaseGranter:
    return LeaseGranter(LEASE_S, WINDOW_S, since)


def test_the_holder_counts_from_when_it_asked() -> None:
    holder = LeaseHolder(LEASE_S)
    nonce = holder.ask(10.0)
    holder.granted(nonce, session=7)
    assert holder.remaining_s(10.0, 7) == LEASE_S
    assert holder.remaining_s(12.0, 7) == 0.0


def test_a_lease_of_another_session_is_worth_nothing() -> None:
    holder = LeaseHolder(LEASE_S)
    holder.granted(holder.ask(10.0), session=7)
    assert holder.remaining_s(10.5, 8) == 0.0
    assert holder.remaining_s(10.5, 0) == 0.0


def test_a_grant_to_an_unknown_question_is_ignored() -> None:
    holder = LeaseHolder(LEASE_S)
    holder.granted(99, session=7)
    assert holder.remaining_s(0.0, 7) == 0.0


def test_a_late_grant_for_an_old_question_shortens_nothing() -> None:
    holder = LeaseHolder(LEASE_S)
    first, second = holder.ask(10.0), holder.ask(11.0)
    holder.granted(second, session=7)
    holder.granted(first, session=7)
    assert holder.remaining_s(11.0, 7) == LEASE_S


def test_giving_up_forgets_the_questions_under_way() -> None:
    holder = LeaseHolder(LEASE_S)
    nonce = holder.ask(10.0)
    holder.give_up()
    holder.granted(nonce, session=7)
    assert holder.remaining_s(10.0, 7) == 0.0


def test_no_grant_without_a_question_a_session_or_fresh_contact_with_a_majority() -> None:
    leader = granter()
    assert leader.grant(OTHER, 7, 10.0, contact_at=10.0) == 0
    leader.asked(OTHER, 1)
    assert leader.grant(OTHER, None, 10.0, contact_at=10.0) == 0
    leader.asked(OTHER, 2)
    assert leader.grant(OTHER, 7, 10.0, contact_at=10.0 - 2 * WINDOW_S) == 0
    leader.asked(OTHER, 3)
    assert leader.grant(OTHER, 7, 10.0, contact_at=9.9) == 3


def test_a_new_leader_waits_for_what_its_predecessor_may_have_granted() -> None:
    leader = granter(since=100.0)
    sessions = {OTHER: 7}
    assert leader.expired(sessions, ME, 100.0 + LEASE_S + WINDOW_S) == []
    assert leader.expired(sessions, ME, 100.0 + 1.2 * LEASE_S + WINDOW_S) == [(OTHER, 7)]


def test_a_node_going_down_gets_no_grant_until_it_has_a_new_session() -> None:
    leader = granter()
    assert leader.expired({OTHER: 7}, ME, 100.0) == [(OTHER, 7)]
    leader.asked(OTHER, 5)
    assert leader.grant(OTHER, 7, 100.1, contact_at=100.1) == 0
    assert OTHER not in leader.live([ME, OTHER], ME, 100.1)
    leader.asked(OTHER, 6)
    assert leader.grant(OTHER, 8, 100.2, contact_at=100.2) == 6
    assert OTHER in leader.live([ME, OTHER], ME, 100.2)


@pytest.mark.parametrize("seed", range(200))
def test_whoever_is_declared_down_holds_no_lease(seed: int) -> None:
    """faults.md Q3 in small: random delays, losses, pauses and clock rates within the drift that the design allows."""
    rng = random.Random(seed)
    rate = 1 + rng.uniform(-0.04, 0.04)  # the holder's clock against the granter's
    holder = LeaseHolder(LEASE_S)
    leader = granter(since=0.0)
    asks: list[tuple[float, int]] = []
    grants: list[tuple[float, int]] = []
    now = 0.0
    cut_at = rng.uniform(0.5, 4.0)
    while now < 12.0:
        now += rng.uniform(0.01, 0.1)
        if rng.random() < 0.02:
            now += rng.uniform(0.1, 1.5)
        if now < cut_at and rng.random() < 0.7:
            asks.append((now + rng.expovariate(10), holder.ask(now * rate)))
        for arrival, nonce in [ask for ask in asks if ask[0] <= now]:
            asks.remove((arrival, nonce))
            leader.asked(OTHER, nonce)
        if nonce := leader.grant(OTHER, 7, now, contact_at=now):
            grants.append((now + rng.expovariate(5), nonce))
        for arrival, nonce in [grant for grant in grants if grant[0] <= now]:
            grants.remove((arrival, nonce))
            holder.granted(nonce, 7)
        if leader.expired({OTHER: 7}, ME, now):
            assert holder.remaining_s(now * rate, 7) == 0.0, (seed, now)
            break
    else:
        pytest.fail("never declared down")


def test_a_session_that_has_just_begun_has_not_run_out() -> None:
    leader = granter()
    assert leader.expired({ME: 3}, ME, 100.0) == []
    assert leader.expired({ME: 3, OTHER: 7}, ME, 100.1) == []
    assert leader.expired({ME: 3, OTHER: 7}, ME, 100.1 + 1.2 * LEASE_S) == [(OTHER, 7)]
    assert leader.expired({ME: 3, OTHER: 8}, ME, 110.0) == []
    assert leader.expired({ME: 3, OTHER: 8}, ME, 110.0 + 1.2 * LEASE_S) == [(OTHER, 8)]
