"""A follower that is preferred to its leader asks it to hand over: `election_priority` moves a sitting leader, too.

Elections prefer by waiting longer, so after a restart somebody else leads for good, though nothing speaks for it any
more. A node whose priority is higher asks for leadership, and gets it by transfer: tens of milliseconds, no election.

    follower                                       leader
    well for STEADY_S ── prefer(me, priority) ──▶  led for STEADY_S, mine is lower, it has caught up: transfer
                      ◀── my own priority     ───  else no, and why

Leadership must not wander: both must have been so for `STEADY_S`, who was refused waits `AGAIN_S`, and a leader whose
priority is not lower is not asked again. Who stands aside, or has a slow or full disk, does not ask.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from smtpraft.cluster.requests import Declined
from smtpraft.errors import SmtpRaftError
from smtpraft.types import NO_NODE, NodeId

log = logging.getLogger(__name__)

STEADY_S: Final = 10.0  # longer than what moves a leader for good reason takes to show: a slow disk, a rolling restart
AGAIN_S: Final = 30.0
LOOK_EVERY_S: Final = 1.0
OPERATION: Final = "prefer"

Ask = Callable[[str, dict[str, object]], Awaitable[object]]


class Preference:
    """For one node with one priority. Times are seconds, monotonic. `ask` puts a question to the leader."""

    def __init__(self, me: NodeId, priority: int, ask: Ask) -> None:
        self._me = me
        self._priority = priority
        self._ask = ask
        self._well_since: float | None = None
        self._leader = NO_NODE
        self._ask_at = 0.0

    def due(self, now: float, leader: NodeId, *, well: bool) -> bool:
        """Is it time to ask `leader`? `well`: this node votes, follows it closely, and its disk could lead."""
        if leader != self._leader:
            self._leader, self._ask_at, self._well_since = leader, 0.0, None
        if leader in (NO_NODE, self._me) or not well or not self._priority:
            self._well_since = None
            return False
        if self._well_since is None:
            self._well_since = now
        return now - self._well_since >= STEADY_S and now >= self._ask_at

    async def ask(self, now: float) -> None:
        """Ask the leader for leadership; its answer says whether to ask again while it leads."""
        leader, self._ask_at = self._leader, now + AGAIN_S
        try:
            answer = await self._ask(OPERATION, {"node": self._me, "priority": self._priority})
        except SmtpRaftError as error:
            log.debug("leadership not handed over leader=%s reason=%s", leader, error)
            return
        if isinstance(answer, int) and answer >= self._priority and leader == self._leader:
            self._ask_at = float("inf")


def weigh(arguments: dict[str, object], own_priority: int, led_for_s: float, lags: str) -> int | NodeId:
    """As the leader: return the node to hand over to, or this leader's own priority if that is no lower.

    Raises:
        Declined: it is lower, but it is not the time.
    """
    node, priority = arguments.get("node"), arguments.get("priority")
    if not isinstance(node, str) or not isinstance(priority, int):
        raise Declined("a preference names a node and its priority")
    if priority <= own_priority:
        return own_priority
    if led_for_s < STEADY_S:
        raise Declined(f"leadership has moved less than {STEADY_S:g} s ago")
    if lags:
        raise Declined(f"{node} has not caught up: {lags}")
    return NodeId(node)
