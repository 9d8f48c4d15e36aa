"""Node leases: at any true moment at most one node may work on what a node owns.

A node asks with every answer to a heartbeat and is granted with the next heartbeat. The holder counts from when it
asked, the granter from when it answered, each on its own monotonic clock, so the holder always stops first:

    holder    ask t0 ──────────────── valid until t0 + lease ─┤
    granter        ──── grant t1 ──────────── waits until t1 + lease + margin ─┤ then NODE DOWN may be proposed

A leader leases to itself by the same rule: from when it sent the heartbeat that a majority has answered. It grants only
while that moment is fresh, so a deposed leader's last grant is at most `grant_window_s` younger than its successor's
election, and the successor waits that much longer before it declares anybody down.

Nothing here reads a clock: the caller says what time it is (seconds, monotonic).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from smtpraft.types import NodeId

ASKS_KEPT: Final = 64  # a grant for an older question is worth nothing any more at 50 ms a heartbeat
DRIFT_PERCENT: Final = 10  # how far two machines' clock rates may differ over one lease


@dataclass(slots=True)
class LeaseHolder:
    """The side that works. `session` says for which of its sessions the lease was granted."""

    lease_s: float
    session: int = 0
    expires_at: float = 0.0
    _nonce: int = 0
    _asked_at: dict[int, float] = field(default_factory=dict)

    def ask(self, now: float) -> int:
        """Return the number to put into the question that leaves now."""
        self._nonce += 1
        self._asked_at[self._nonce] = now
        if len(self._asked_at) > ASKS_KEPT:
            del self._asked_at[next(iter(self._asked_at))]
        return self._nonce

    def granted(self, nonce: int, session: int) -> None:
        """A leader answered question `nonce` for `session`."""
        asked_at = self._asked_at.get(nonce)
        if asked_at is None:
            return
        self._extend(asked_at + self.lease_s, session)

    def granted_by_quorum(self, contact_at: float, session: int) -> None:
        """This node leads, and a majority has answered a heartbeat that it sent at `contact_at`."""
        self._extend(contact_at + self.lease_s, session)

    def give_up(self) -> None:
        """Hold nothing from now on, and forget the questions that are still out."""
        self.expires_at = 0.0
        self.session = 0
        self._asked_at.clear()

    def remaining_s(self, now: float, session: int) -> float:
        """Return for how long this node may still work under `session`; 0 if not at all."""
        if session == 0 or session != self.session:
            return 0.0
        return max(0.0, self.expires_at - now)

    def _extend(self, until: float, session: int) -> None:
        if session != self.session:
            self.session, self.expires_at = session, until
        elif until > self.expires_at:
            self.expires_at = until


@dataclass(slots=True)
class LeaseGranter:
    """The leader's side, from one election to the next."""

    lease_s: float
    grant_window_s: float
    since: float
    """When this node became leader."""
    _asked: dict[NodeId, int] = field(default_factory=dict)
    _answered_at: dict[NodeId, float] = field(default_factory=dict)
    _going_down: dict[NodeId, int] = field(default_factory=dict)
    _known: dict[NodeId, tuple[int, float]] | None = None
    """Each node's session, and since when this leader knows of it; None before it has looked for the first time."""

    def asked(self, node: NodeId, nonce: int) -> None:
        """`node` asked; `nonce` 0 is no question."""
        if nonce:
            self._asked[node] = nonce

    def grant(self, node: NodeId, session: int | None, now: float, contact_at: float) -> int:
        """Return the question to answer with a grant in the heartbeat that leaves now, or 0 for none.

        `session` is the node's open session as far as this leader has applied the log, None if it has none;
        `contact_at` is when the last heartbeat left that a majority has answered.
        """
        nonce = self._asked.pop(node, 0)
        if not nonce or session is None or now - contact_at > self.grant_window_s:
            return 0
        if self._going_down.get(node) == session:
            return 0
        self._going_down.pop(node, None)
        self._answered_at[node] = now
        return nonce

    def expired(self, sessions: Mapping[NodeId, int], me: NodeId, now: float) -> list[tuple[NodeId, int]]:
        """Return the nodes, with their session, whose lease has certainly run out; they get no grant from now on."""
        wait_s = self.lease_s * (100 + DRIFT_PERCENT) / 100
        floor = self.since + self.grant_window_s  # what a predecessor may have granted
        # A new session gets its first grant with the next heartbeat: until then it has not run out, it has not begun.
        known = self._known or {}
        new_at = self.since if self._known is None else now
        self._known = {
            node: known[node] if known.get(node, (0,))[0] == session else (session, new_at)
            for node, session in sessions.items()
        }
        gone = []
        for node, (session, known_at) in self._known.items():
            if node != me and now > max(self._answered_at.get(node, 0.0), floor, known_at) + wait_s:
                self._going_down[node] = session
                gone.append((node, session))
        return gone

    def live(self, nodes: Iterable[NodeId], me: NodeId, now: float) -> list[NodeId]:
        """Return those of `nodes` that hold a lease now as far as this leader knows, itself among them."""
        return [
            node
            for node in nodes
            if node not in self._going_down and (node == me or now < self._answered_at.get(node, 0.0) + self.lease_s)
        ]
