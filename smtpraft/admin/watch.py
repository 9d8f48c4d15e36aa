"""Watches a node and its queue, and makes events of what changes.

The node is looked at ten times a second: what came and went in between is known by its counters, and said. The queue
tells of its changes once a batch; they become events only while somebody listens to them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from smtpraft.admin.feed import Feed
from smtpraft.cluster.status import NodeStatus
from smtpraft.spool.types import Changes

LOOK_S: Final = 0.1
BATCH_EVENTS_MAX: Final = 200  # of one applied batch; the others are counted


class Watch:
    """Of one node. `since` says when the leader was last heard to lead, as seconds since 1970."""

    def __init__(self, feed: Feed, status: Callable[[], NodeStatus]) -> None:
        self._feed = feed
        self._status = status
        self.leader_since: float | None = None
        self.lost_since: dict[str, float] = {}
        """Peers that cannot be reached, and since when."""
        self.changed = asyncio.Event()
        """Set when there was something new; whoever waits for it clears it."""

    async def run(self) -> None:
        """Look, for ever."""
        before = self._status()
        self.leader_since = time.time() if before.leader_id else None
        while True:
            await asyncio.sleep(LOOK_S)
            now = self._status()
            if now != before:
                self._compare(before, now)
                before = now

    def _say(self, kind: str, text: str, **facts: object) -> None:
        self._feed.publish("cluster", kind, text, **facts)
        self.changed.set()

    def _compare(self, before: NodeStatus, now: NodeStatus) -> None:
        me = now.node_id
        if now.leader_id != before.leader_id or (now.leader_id and now.leader_changes != before.leader_changes):
            self._leader(before, now)
        if now.role != before.role:
            self._say("role", f"{me} is {now.role} in term {now.term}", node=me, role=now.role, term=now.term)
        if now.has_quorum != before.has_quorum:
            text = f"{me} can commit again" if now.has_quorum else f"{me} cannot commit: no majority in contact"
            self._say("quorum", text, node=me, quorum=now.has_quorum)
        reached = {peer.id: peer.reachable for peer in before.peers}
        for peer in now.peers:
            if peer.reachable == reached.get(peer.id):
                continue
            if peer.reachable:
                self.lost_since.pop(peer.id, None)
                self._say("peer-up", f"{me} reaches {peer.id}", node=me, peer=peer.id)
            elif peer.id in reached:
                self.lost_since[peer.id] = time.time()
                self._say("peer-lost", f"{me} cannot reach {peer.id}", node=me, peer=peer.id)
        if now.voters != before.voters or {p.id for p in now.peers} != reached.keys():
            text = f"members: {', '.join(sorted([me, *(peer.id for peer in now.peers)]))}"
            self._say("members", f"{text}; voters: {', '.join(now.voters)}", node=me, voters=list(now.voters))
        for node in sorted(set(before.nodes_up) - set(now.nodes_up)):
            self._say("taken-over", f"{node} is down: others deliver what it had", node=me, peer=node)
        for node in sorted(set(now.nodes_up) - set(before.nodes_up)):
            self._say("delivers", f"{node} takes part in delivery", node=me, peer=node)
        if now.disk != before.disk:
            self._say("disk", f"the disk of {me} is {now.disk}, was {before.disk}", node=me, disk=now.disk)
        if now.lease_held != before.lease_held:
            text = f"{me} holds its lease" if now.lease_held else f"{me} lost its lease: it delivers nothing"
            self._say("lease", text, node=me, held=now.lease_held)
        if now.abstains != before.abstains:
            text = f"{me} {'does not vote: its log is damaged' if now.abstains else 'votes again: its log is healed'}"
            self._say("abstains", text, node=me, abstains=now.abstains)

    def _leader(self, before: NodeStatus, now: NodeStatus) -> None:
        facts: dict[str, object] = {"node": now.node_id, "leader": now.leader_id, "term": now.term}
        if not now.leader_id:
            self.leader_since = None
            self._say("leader-lost", f"no leader in term {now.term}", **facts)
            return
        self.leader_since = time.time()
        changes = now.leader_changes - before.leader_changes
        more = f" ({changes} changes within {LOOK_S:g} s)" if changes > 1 else ""
        self._say("leader", f"{now.leader_id} leads in term {now.term}{more}", changes=changes, **facts)

    # ---- the queue --------------------------------------------------------------------------------------------------

    def queue_changed(self, changes: Changes) -> None:
        """Hear of an applied batch: what it means for this node's messages."""
        if not self._feed.wanted("queue"):
            return
        left = BATCH_EVENTS_MAX
        more = 0
        if changes.resync:
            self._feed.publish("queue", "resync", "too much changed at once to tell one by one")
        for info in changes.accepted:
            left -= 1
            if left < 0:
                more += 1
                continue
            self._feed.publish(
                "queue",
                "bounce" if info.is_bounce else "accepted",
                f"{info.id} from <{info.sender}> for {len(info.recipients)}",
                message=info.id,
                node=info.owner,
                sender=info.sender,
                recipients=[recipient.address for recipient in info.recipients[:20]],
                recipient_count=len(info.recipients),
                size_bytes=info.size_bytes,
                client=info.client_host,
            )
        for info in changes.deferred:
            left -= 1
            if left < 0:
                more += 1
                continue
            replies = [r.last_reply for r in info.recipients if not r.state.final and r.last_reply]
            self._feed.publish(
                "queue",
                "deferred",
                f"{info.id} deferred: {replies[0] if replies else 'no reply'}",
                message=info.id,
                reply=replies[0] if replies else None,
                next_attempt=info.next_attempt_ms / 1000,
            )
        for info in changes.moved_here:
            left -= 1
            if left < 0:
                more += 1
                continue
            self._feed.publish(
                "queue", "moved", f"{info.id} taken over by {info.owner}", message=info.id, node=info.owner
            )
        ids = {
            "done": changes.done,
            "deleted": changes.deleted,
            "held": changes.held,
            "released": [info.id for info in changes.released],
            "flushed": [info.id for info in changes.flushed],
            "moved-away": changes.moved_away,
        }
        for kind, messages in ids.items():
            for message in messages:
                left -= 1
                if left < 0:
                    more += 1
                    continue
                self._feed.publish("queue", kind, f"{message} {kind}", message=message)
        if more:
            self._feed.publish("queue", "more", f"{more} more changes at once", count=more)
