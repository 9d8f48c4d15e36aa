"""When a preferred follower asks for leadership, and what its leader says."""

from __future__ import annotations

import pytest

from smtpraft.cluster.preference import AGAIN_S, STEADY_S, Preference, weigh
from smtpraft.cluster.requests import Declined
from smtpraft.errors import NotReplicated
from smtpraft.types import NO_NODE, NodeId

N1, N2, N3 = (NodeId(f"node-{number}") for number in (1, 2, 3))


class Leader:
    """Answers with its priority, or refuses."""

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.refuses = False
        self.asked: list[tuple[str, dict[str, object]]] = []

    async def ask(self, operation: str, arguments: dict[str, object]) -> object:
        self.asked.append((operation, arguments))
        if self.refuses:
            raise NotReplicated("not now")
        return self.priority


async def test_who_is_preferred_asks_once_it_has_been_well_for_long_enough() -> None:
    leader = Leader(100)
    preference = Preference(N1, 100, leader.ask)
    assert not preference.due(0.0, N2, well=True)
    assert not preference.due(STEADY_S - 0.1, N2, well=True)
    assert preference.due(STEADY_S, N2, well=True)
    await preference.ask(STEADY_S)
    assert leader.asked == [("prefer", {"node": N1, "priority": 100})]
    assert not preference.due(1e9, N2, well=True), "a leader whose priority is not lower is not asked again"
    assert not preference.due(1e9, N3, well=True), "another leader, from now on"
    assert preference.due(1e9 + STEADY_S, N3, well=True)


async def test_who_is_refused_asks_again_later() -> None:
    leader = Leader(10)
    leader.refuses = True
    preference = Preference(N1, 100, leader.ask)
    preference.due(0.0, N2, well=True)
    assert preference.due(STEADY_S, N2, well=True)
    await preference.ask(STEADY_S)
    assert not preference.due(STEADY_S + AGAIN_S - 0.1, N2, well=True)
    assert preference.due(STEADY_S + AGAIN_S, N2, well=True)


@pytest.mark.parametrize(
    ("leader", "well", "priority"), [(N1, True, 100), (NO_NODE, True, 100), (N2, False, 100), (N2, True, 0)]
)
def test_who_leads_or_knows_no_leader_or_is_not_well_does_not_ask(leader: NodeId, well: bool, priority: int) -> None:
    preference = Preference(N1, priority, Leader(1).ask)
    assert not preference.due(0.0, leader, well=well)
    assert not preference.due(1e9, leader, well=well)


def test_to_be_unwell_begins_the_wait_anew() -> None:
    preference = Preference(N1, 100, Leader(1).ask)
    preference.due(0.0, N2, well=True)
    assert not preference.due(STEADY_S, N2, well=False)
    assert not preference.due(STEADY_S + 1, N2, well=True)
    assert preference.due(2 * STEADY_S + 1, N2, well=True)


def test_a_leader_hands_over_to_a_higher_priority_that_has_caught_up_and_not_too_soon() -> None:
    wish: dict[str, object] = {"node": N1, "priority": 50}
    assert weigh(wish, 50, 1e9, "") == 50
    assert weigh(wish, 60, 1e9, "") == 60
    assert weigh(wish, 49, STEADY_S, "") == N1
    with pytest.raises(Declined, match="moved"):
        weigh(wish, 49, STEADY_S - 1, "")
    with pytest.raises(Declined, match="lags by"):
        weigh(wish, 49, 1e9, "it lags by 5000 entries")
    nonsenses: tuple[dict[str, object], ...] = ({}, {"node": 1, "priority": 50}, {"node": N1, "priority": "high"})
    for nonsense in nonsenses:
        with pytest.raises(Declined, match="names a node"):
            weigh(nonsense, 49, 1e9, "")
