"""What gathers for the leader, above all while leadership moves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from smtpraft.cluster.proposals import Proposals
from smtpraft.cluster.proposing import HELD_BYTES_MAX, Proposing
from smtpraft.consensus import RawNode, Role
from smtpraft.fastlog import ENTRY_NORMAL
from smtpraft.types import NodeId

N1, N2 = NodeId("node-1"), NodeId("node-2")


class Bench:
    """A leader whose core notes what it is given."""

    def __init__(self) -> None:
        self.proposed: list[list[bytes]] = []
        self.core: Any = SimpleNamespace(
            id=N1,
            role=Role.LEADER,
            term=1,
            leader_id=N1,
            hands_over=False,
            propose=self.proposed.append,
            log=SimpleNamespace(last_index=9),
        )
        beats: Any = SimpleNamespace(quorum_contact_at=lambda now: now)
        outbound: Any = SimpleNamespace(hurry=lambda node, index: None, send=lambda message: None)
        self.proposals = Proposals(N1, max_pending_bytes=1 << 20)
        self.proposing = Proposing(
            cast(RawNode, self.core), self.proposals, beats, outbound, lambda peer: True, 1.0, clock=lambda: 100.0
        )

    def forward(self, payload: bytes) -> None:
        self.proposing.forwarded(N2, [(ENTRY_NORMAL, payload)])
        self.proposing.turn(100.0)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_what_is_forwarded_while_leadership_moves_is_proposed_if_nobody_takes_over(bench: Bench) -> None:
    bench.core.hands_over = True
    bench.forward(b"a")
    bench.forward(b"b")
    assert bench.proposed == []
    assert bench.proposing.has_some
    bench.core.hands_over = False
    bench.proposing.turn(100.0)
    assert bench.proposed == [[b"a", b"b"]]
    assert not bench.proposing.has_some


def test_what_is_forwarded_while_leadership_moves_is_its_senders_to_repeat_once_it_has_moved(bench: Bench) -> None:
    bench.core.hands_over = True
    bench.forward(b"a")
    bench.core.hands_over = False
    bench.core.role, bench.core.leader_id = Role.FOLLOWER, N2
    bench.proposing.turn(100.0)
    bench.core.role, bench.core.leader_id = Role.LEADER, N1
    bench.forward(b"b")
    assert bench.proposed == [[b"b"]]


def test_what_is_held_meanwhile_is_bounded(bench: Bench) -> None:
    bench.core.hands_over = True
    bench.forward(bytes(HELD_BYTES_MAX))
    assert bench.proposed == []
    bench.forward(b"more")  # the core says no to all of it, and its senders repeat it
    assert not bench.proposing.has_forwarded
    bench.forward(b"after")
    assert bench.proposing.has_forwarded
