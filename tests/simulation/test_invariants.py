"""The judge sees what is wrong, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from smtpraft.consensus import Message, MessageType
from smtpraft.simulator.invariants import Batch
from smtpraft.simulator.plan import Plan
from smtpraft.simulator.process import Process
from smtpraft.simulator.records import Mark
from smtpraft.simulator.violation import Violation
from smtpraft.simulator.world import World
from smtpraft.storage import HardState
from smtpraft.types import NodeId


def confirms(process: Process, index: int, term: int) -> None:
    message = Message(MessageType.APP_RESP, to=NodeId("n2"), sender=process.id, term=term, index=index)
    process.world.invariants.sent(process, message)


def test_an_answer_of_an_earlier_term_is_true_if_it_was_then(tmp_path: Path) -> None:
    """Behind a slow disk it leaves with what has replaced its entries since, as if the network had kept it."""
    world = World(Plan.draw(1, nodes=3, only=frozenset()), str(tmp_path))
    host = world.hosts[NodeId("n1")]
    host.start()
    process = host.process
    assert process is not None
    old, new = HardState(term=5, vote=NodeId("n2")), HardState(term=6, vote=NodeId("n3"))
    try:
        world.invariants.synced(host, [Batch(old, 1, [Mark(5, 1), Mark(5, 2), Mark(5, 3)])])
        confirms(process, 3, term=5)
        world.invariants.synced(host, [Batch(new, 0, []), Batch(None, 2, [Mark(6, 4)])])
        confirms(process, 3, term=5)
        confirms(process, 2, term=6)
        for index, term in ((3, 6), (4, 5), (3, 4)):
            with pytest.raises(Violation, match="R8"):
                confirms(process, index, term)
    finally:
        world.close()
