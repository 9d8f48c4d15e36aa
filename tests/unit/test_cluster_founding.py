"""How a cluster begins: by all of its nodes, once; never by one that has lost its disk."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpraft.cluster.founding import FRAME_FOUNDING, Founding
from smtpraft.fastlog import CorruptFrame, FrameDecoder
from smtpraft.types import NodeId

NODES = tuple(NodeId(f"node-{number}") for number in (1, 2, 3))
A, B, C = NODES


def said(founding: Founding) -> bytes:
    ((kind, head, tail),) = FrameDecoder(1 << 14).feed(founding.word())
    assert (kind, tail) == (FRAME_FOUNDING, b"")
    return head


def fresh(node: NodeId, incarnation: int) -> Founding:
    return Founding(node, incarnation, NODES, {})


def talk(rounds: int, *sides: tuple[NodeId, Founding]) -> None:
    """Everybody tells everybody, `rounds` times."""
    for _ in range(rounds):
        words = [(node, said(founding)) for node, founding in sides]
        for node, word in words:
            for other, founding in sides:
                if other != node:
                    founding.hear(node, word)


def test_a_cluster_begins_once_all_have_seen_all() -> None:
    sides = [(node, fresh(node, number)) for number, node in enumerate(NODES, start=101)]
    talk(1, *sides)
    assert not any(founding.founders for _, founding in sides)  # seen, but not known that the others see the same
    talk(1, *sides)
    assert all(founding.founders == {A: 101, B: 102, C: 103} for _, founding in sides)


def test_two_of_three_begin_nothing_and_name_the_third() -> None:
    one, two = fresh(A, 1), fresh(B, 2)
    talk(10, (A, one), (B, two))
    assert not one.founders
    assert C in one.missing


def test_one_that_was_late_takes_its_place() -> None:
    """A crash between the founding of the others and its own; it has promised nothing yet."""
    sides = [(A, fresh(A, 1)), (B, fresh(B, 2)), (C, fresh(C, 3))]
    talk(2, *sides[:2], (C, Founding(C, 3, NODES, {})))
    founders = {A: 1, B: 2, C: 3}
    one, late = Founding(A, 1, NODES, founders), fresh(C, 3)
    assert one.hear(C, said(late))  # it is told at once
    assert late.hear(A, said(one))
    assert late.founders == founders


def test_one_that_lost_its_disk_does_not() -> None:
    founders = {A: 1, B: 2, C: 3}
    one, two, again = Founding(A, 1, NODES, founders), Founding(B, 2, NODES, founders), fresh(C, 4)
    assert not one.hear(C, said(again))
    talk(5, (A, one), (B, two), (C, again))
    assert not again.founders
    assert one.founders == two.founders == founders


def test_one_founder_and_one_that_lost_its_disk_do_not_make_a_third_begin() -> None:
    """The others' majority may be gone, but one of them is there: it might hold what was acknowledged."""
    one = Founding(A, 1, NODES, {A: 1, B: 2, C: 3})
    two, three = fresh(B, 20), fresh(C, 30)
    talk(10, (A, one), (B, two), (C, three))
    assert not two.founders
    assert not three.founders


@pytest.mark.parametrize("head", [b"", b"\x93\x01\xc3", b"\x93\x01\xc3\x93", b"\x94\x01\xc3\x80\x00"])
def test_what_is_no_word_is_refused(head: bytes) -> None:
    with pytest.raises(CorruptFrame):
        fresh(A, 1).hear(B, head)


class World:
    """Nodes that write down their founding, a network that loses, repeats and reorders, disks that are lost."""

    def __init__(self, source: random.Random) -> None:
        self.source = source
        self.born = 0
        self.nodes: dict[NodeId, Founding] = {}
        self.began_with: list[dict[NodeId, int]] = []
        """Every founding set of which a majority was a founder at one moment: it may have acknowledged something."""
        self.network: list[tuple[NodeId, NodeId, bytes]] = []
        for node in NODES:
            self.wipe(node)

    def wipe(self, node: NodeId) -> None:
        self.born += 1
        self.nodes[node] = fresh(node, self.born)

    def restart(self, node: NodeId) -> None:
        old = self.nodes[node]
        self.nodes[node] = Founding(node, old._incarnation, NODES, old.founders)

    def step(self) -> None:
        choice = self.source.random()
        if choice < 0.5 or not self.network:
            sender = self.source.choice(NODES)
            word = said(self.nodes[sender])
            self.network += [(sender, to, word) for to in NODES if to != sender]
        else:
            number = self.source.randrange(len(self.network))
            sender, to, word = self.network[number] if choice < 0.6 else self.network.pop(number)
            self.nodes[to].hear(sender, word)
        for founders in self.living():
            if founders not in self.began_with:
                self.began_with.append(founders)

    def living(self) -> Iterator[dict[NodeId, int]]:
        """Founding sets of which a majority is there now, each under its own incarnation."""
        for founders in [founding.founders for founding in self.nodes.values() if founding.founders]:
            there = [
                node
                for node, incarnation in founders.items()
                if self.nodes[node].founders == founders and self.nodes[node]._incarnation == incarnation
            ]
            if 2 * len(there) > len(NODES):
                yield founders


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_whatever_the_network_does_a_cluster_begins_once_if_one_disk_is_lost(seed: int) -> None:
    """R15: restarts anywhere, messages of any age, and one disk lost at any moment: there are never two clusters."""
    source = random.Random(seed)
    world = World(source)
    wiped_at = source.randrange(120)
    for number in range(160):
        world.step()
        if number == wiped_at:
            world.wipe(source.choice(NODES))
        elif source.random() < 0.05:
            world.restart(source.choice(NODES))
    assert len(world.began_with) <= 1, world.began_with
