"""The network between the nodes: late, lossy, twice, out of order, cut in one direction or in both.

Frames are bytes, as on a real wire, so nobody shares an object with anybody. TCP would hide some of this; the core must
not need that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random
from typing import Final, NamedTuple

from smtpraft.cluster.wire import FRAME_APP, FRAME_PROP
from smtpraft.fastlog import FRAME_HEARTBEAT
from smtpraft.simulator.plan import Plan
from smtpraft.simulator.timeline import MS, Timeline
from smtpraft.types import NodeId

MILLION: Final = 1_000_000
LEADING: Final = (FRAME_APP, FRAME_HEARTBEAT)
CALM_US: Final = 1000


class Frame(NamedTuple):
    """One message on its way; `kind` and `head` as in `cluster.wire`."""

    kind: int
    head: bytes
    tail: bytes
    directories: tuple[int, int] | None = None
    """Of whom it is, and for whom it is; None where nobody loses any."""


class Network:
    """Takes frames, and hands them to `arrive(sender, to, frame)` later, or never."""

    def __init__(
        self, timeline: Timeline, random: Random, plan: Plan, arrive: Callable[[NodeId, NodeId, Frame], object]
    ) -> None:
        self._timeline = timeline
        self._random = random
        self._arrive = arrive
        self._in_order = not plan.has("reorder")
        self._last_at: dict[tuple[NodeId, NodeId], int] = {}
        self.delay_us = plan.delay_us
        self.jitter_us = plan.jitter_us
        self.loss_ppm = plan.loss_ppm
        self.repeat_ppm = plan.repeat_ppm
        self.cut: set[tuple[NodeId, NodeId]] = set()
        """(from, to) that let nothing through. Asked for membership alone: a set has no order that could be told."""
        self._leads = ""
        """The only one whose word as a leader counts; empty: everybody's does."""
        self._reached: set[NodeId] = set()
        """Whom its entries reach; its heartbeats reach all."""
        self.late_us: dict[NodeId, int] = {}
        """How much later all that is sent to a node arrives."""
        self.late_link: tuple[NodeId, NodeId] | None = None
        self.late_link_us = 0
        """How much later what is sent over that one arrives."""
        self._late_mail = plan.has("late-mail")
        self.sent = self.lost = self.repeated = 0

    def send(self, sender: NodeId, to: NodeId, frame: Frame) -> bool:
        """Put a frame on its way; return whether the sender believes that it went."""
        self.sent += 1
        link = (sender, to)
        if link in self.cut:
            self.lost += 1
            return False
        if self._leads and frame.kind in LEADING and self._is_not_heard(link, frame.kind):
            # Often its sender knows: it begins again with what it knows to be there, which is much less than is.
            self.lost += 1
            return self._random.random() < 0.5
        chance = self._random.random
        if self.loss_ppm and chance() * MILLION < self.loss_ppm:
            self.lost += 1
            return True
        self._deliver(link, frame)
        if self.repeat_ppm and chance() * MILLION < self.repeat_ppm:
            self.repeated += 1
            self._deliver(link, frame)
        return True

    def _deliver(self, link: tuple[NodeId, NodeId], frame: Frame) -> None:
        draw = self._random.random()
        # Most are quick, a few take ten times as long.
        delay = self.delay_us + int(draw * self.jitter_us * (10 if draw > 0.97 else 1))
        if self.late_us:
            delay += self.late_us.get(link[1], 0)
        if self.late_link == link:
            delay += self.late_link_us
        if self._late_mail and frame.kind == FRAME_PROP and self._random.random() < 0.4:
            # About when whoever wants it gives it up: at times it comes behind its own withdrawal.
            delay += self._random.randrange(200 * MS, 1500 * MS)
        elif self._in_order:
            now = self._timeline.now
            at = max(now + delay, self._last_at.get(link, 0))
            self._last_at[link] = at
            delay = at - now
        self._timeline.after(delay, self._arrived, link, frame)

    def _arrived(self, link: tuple[NodeId, NodeId], frame: Frame) -> None:
        if link in self.cut:  # What was on its way goes down with the link.
            self.lost += 1
            return
        self._arrive(link[0], link[1], frame)

    def connected(self, one: NodeId, other: NodeId) -> bool:
        """Can they speak, both ways?"""
        return (one, other) not in self.cut and (other, one) not in self.cut

    def separate(self, ones: Iterable[NodeId], others: Iterable[NodeId], *, both_ways: bool = True) -> None:
        """Let nothing through from `ones` to `others`, nor back if `both_ways`."""
        others = list(others)
        for one in ones:
            for other in others:
                if one != other:
                    self.cut.add((one, other))
                    if both_ways:
                        self.cut.add((other, one))

    def storm(self, plan: Plan) -> None:
        """Be as bad as the plan says, with every link whole."""
        self.cut.clear()
        self.late_us.clear()
        self.late_link = None
        self._late_mail = plan.has("late-mail")
        self.delay_us, self.jitter_us = plan.delay_us, plan.jitter_us
        self.loss_ppm, self.repeat_ppm = plan.loss_ppm, plan.repeat_ppm

    def calm(self) -> None:
        """Be a good network from now on, but for the links that are cut."""
        self.let_all_lead()
        self.late_us.clear()
        self.late_link = None
        self._late_mail = False
        self.loss_ppm = self.repeat_ppm = 0
        self.delay_us = self.jitter_us = CALM_US

    def mend(self, node: NodeId) -> None:
        """Mend the links of one node."""
        self.cut.difference_update([link for link in self.cut if node in link])

    def _is_not_heard(self, link: tuple[NodeId, NodeId], kind: int) -> bool:
        sender, to = link
        return sender != self._leads or (kind == FRAME_APP and to not in self._reached)

    def let_lead(self, sender: NodeId, reached: set[NodeId]) -> None:
        """Let `sender` alone be heard as a leader, its entries by these nodes only."""
        self._leads, self._reached = sender, reached

    def let_all_lead(self) -> None:
        """Let everybody's word count again."""
        self._leads = ""

    def heal(self) -> None:
        """Mend every link."""
        self.cut.clear()
