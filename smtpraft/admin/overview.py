"""The whole cluster at one glance: every member is asked for its facts, and what it says is laid side by side.

A node answers for itself (`facts`); whoever wants the overview has this node ask all of them, at most once a second
however many want it, and not at all when nobody does.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol

from smtpraft._version import __version__
from smtpraft.admin.history import SLOT_S, SLOTS, History, Slot, quantile
from smtpraft.admin.views import QUEUE_STATES, JsonObject
from smtpraft.admin.watch import Watch
from smtpraft.cluster.requests import Arguments
from smtpraft.cluster.status import NodeStatus
from smtpraft.types import NodeId, node_order

OPERATION: Final = "facts"
ASK_S: Final = 0.7
FRESH_S: Final = 0.9
ROOM_S: Final = 5.0
RECENT_SLOTS: Final = 4  # what the figures of "now" are of: 12 seconds
DESTINATIONS_MAX: Final = 20
TEXT_MAX: Final = 200

Destination = tuple[str, int, int, str]
"""What it is called, messages that wait here, connections, and the reply that says why it is down ("": it is not)."""


class OverviewNode(Protocol):
    """What is needed of `cluster.Node`."""

    def status(self) -> NodeStatus: ...

    @property
    def loop_lag_s(self) -> float: ...

    async def ask_members(
        self, operation: str, arguments: Arguments, *, timeout_s: float
    ) -> dict[NodeId, object | None]: ...


class Overview:
    """For one node."""

    def __init__(
        self,
        node: OverviewNode,
        watch: Watch,
        history: History,
        *,
        counts: Callable[[], dict[str, int]],
        oldest_age_s: Callable[[], Awaitable[float]],
        destinations: Callable[[], Sequence[Destination]],
        connections: Callable[[], int],
        ack_bounds: Sequence[float],
        sync_bounds: Sequence[float],
        data_dir: str,
    ) -> None:
        self._node = node
        self._watch = watch
        self._history = history
        self._counts = counts
        self._oldest_age_s = oldest_age_s
        self._destinations = destinations
        self._connections = connections
        self._ack_bounds = ack_bounds
        self._sync_bounds = sync_bounds
        self._data_dir = data_dir
        self._started = time.time()
        self._room: tuple[int, int] = (0, 0)
        self._room_at = -ROOM_S
        self.draining = False
        self._last: JsonObject = {}
        self._last_at = -FRESH_S
        self._one_at_a_time = asyncio.Lock()

    # ---- this node --------------------------------------------------------------------------------------------------

    async def facts(self, arguments: Arguments) -> object:
        """Return what this node says of itself: numbers of one moment, and its slots."""
        status = self._node.status()
        recent = self._history.recent(RECENT_SLOTS)
        await self._look_at_disk()
        waiting = sorted(self._destinations(), key=lambda found: (-found[1], found[0]))[:DESTINATIONS_MAX]
        return {
            "id": status.node_id,
            "version": __version__,
            "role": status.role,
            "term": status.term,
            "leader_id": status.leader_id or None,
            "leader_since": self._watch.leader_since,
            "last_index": status.last_index,
            "commit_index": status.commit_index,
            "applied_index": status.applied_index,
            "durable_index": status.durable_index,
            "disk": status.disk,
            "abstains": status.abstains,
            "has_quorum": status.has_quorum,
            "lease": status.lease_held,
            "draining": self.draining,
            "uptime_s": round(time.time() - self._started, 1),
            "free_bytes": self._room[0],
            "size_bytes": self._room[1],
            "sync_p50_ms": _ms(quantile(recent.syncs, self._sync_bounds, 0.5)),
            "sync_p99_ms": _ms(quantile(recent.syncs, self._sync_bounds, 0.99)),
            "loop_lag_ms": round(self._node.loop_lag_s * 1000, 2),
            "round_trips": {peer.id: peer.round_trip_ms for peer in status.peers if peer.round_trip_ms is not None},
            "connections": self._connections(),
            "owned": self._counts().get("owned", 0),
            "destinations": [[name[:TEXT_MAX], count, links, why[:TEXT_MAX]] for name, count, links, why in waiting],
            "slot": History.slot_now(),
            "slots": [slot.packed() for slot in self._history.slots],
        }

    async def _look_at_disk(self) -> None:
        now = time.monotonic()
        if self._data_dir and now - self._room_at >= ROOM_S:
            self._room_at = now
            try:
                facts = await asyncio.to_thread(os.statvfs, self._data_dir)
            except OSError:
                return  # told of by the state of the disk
            self._room = facts.f_bavail * facts.f_frsize, facts.f_blocks * facts.f_frsize

    # ---- all of them ------------------------------------------------------------------------------------------------

    async def get(self, *, fresh: bool = False) -> JsonObject:
        """Return the overview: not older than a second, or (`fresh`) made now."""
        asked_at = time.monotonic()
        async with self._one_at_a_time:
            if time.monotonic() - self._last_at > FRESH_S or (fresh and self._last_at < asked_at):
                self._last = await self._make()
                self._last_at = time.monotonic()
            return self._last

    async def _make(self) -> JsonObject:
        status = self._node.status()
        answers, age_s = await asyncio.gather(self._node.ask_members(OPERATION, {}, timeout_s=ASK_S), self._age_s())
        now = time.time()
        commit = status.commit_index
        nodes, slots, destinations = [], dict[int, Slot](), dict[str, list[Any]]()
        addresses = {peer.id: peer for peer in status.peers}
        for node in sorted(answers, key=node_order):
            facts = answers[node]
            peer = addresses.get(node)
            row: JsonObject = {"id": node, "state": "up", "address": peer.address if peer else None}
            row["voter"] = node in status.voters
            if isinstance(facts, dict):
                own = {str(key): value for key, value in facts.items()}
                self._merge(own.pop("slot", 0), own.pop("slots", []), own.pop("destinations", []), slots, destinations)
                commit = max(commit, int(own.get("commit_index", 0)))
                row |= own
            else:
                row["state"] = "silent" if peer is not None and peer.reachable else "unreachable"
                row["since"] = self._watch.lost_since.get(node)
            nodes.append(row)
        for row in nodes:
            if row["state"] == "up":
                row["lag"] = max(0, commit - int(row["applied_index"]))
                row["unsynced"] = max(0, commit - int(row["durable_index"]))
        leader = next((row for row in nodes if row.get("role") == "leader" and row["term"] >= status.term), None)
        trips: dict[str, float] = (leader or {}).get("round_trips") or {}
        for row in nodes:
            row.pop("round_trips", None)
            row["round_trip_ms"] = trips.get(row["id"])
        counts = self._counts()
        return {
            "time": round(now, 3),
            "node_id": status.node_id,
            "version": __version__,
            "cluster": {
                "id": status.cluster_id,
                "voters": list(status.voters),
                "up": sum(row["state"] == "up" for row in nodes),
                "has_quorum": status.has_quorum,
                "leader_id": status.leader_id or None,
                "leader_since": leader["leader_since"] if leader else self._watch.leader_since,
                "term": status.term,
                "commit_index": commit,
            },
            "nodes": nodes,
            "queue": {state: counts.get(state, 0) for state in QUEUE_STATES}
            | {name: counts.get(name, 0) for name in ("recipients", "bytes")}
            | {"oldest_age_s": age_s},
            "totals": {
                name: counts.get(name, 0)
                for name in ("accepted", "delivered", "deferrals", "failed", "expired", "bounces", "deleted", "moved")
            },
            "destinations": [
                {"name": name, "waiting": found[0], "connections": found[1], "down": found[2] or None}
                for name, found in sorted(destinations.items(), key=lambda pair: (-pair[1][0], pair[0]))
            ][:DESTINATIONS_MAX],
            "history": self._curves(slots),
        }

    async def _age_s(self) -> float | None:
        try:
            async with asyncio.timeout(ASK_S):
                return round(await self._oldest_age_s(), 1)
        except TimeoutError:
            return None  # the disk hangs: then the rest is wanted all the more

    @staticmethod
    def _merge(
        slot_now: Any, packed: Any, destinations: Any, slots: dict[int, Slot], found: dict[str, list[Any]]
    ) -> None:
        """Add what one node says; its slots are moved by what its clock is off."""
        try:
            shift = History.slot_now() - int(slot_now)
            for value in packed:
                slot = Slot.unpacked(value)
                slots.setdefault(slot.number + shift, Slot(slot.number + shift)).merge(slot)
            for name, waiting, connections, why in destinations:
                row = found.setdefault(str(name), [0, 0, ""])
                row[0] += int(waiting)
                row[1] += int(connections)
                row[2] = row[2] or str(why)
        except (TypeError, ValueError, LookupError):
            return  # a node of another release says it otherwise

    def _curves(self, slots: dict[int, Slot]) -> JsonObject:
        """Return five minutes of whole slots, the oldest first."""
        end = History.slot_now()
        rows = [slots.get(number, Slot(number)) for number in range(end - SLOTS, end)]
        recent = Slot(0)
        for slot in rows[-RECENT_SLOTS:]:
            recent.merge(slot)
        seconds = RECENT_SLOTS * SLOT_S
        return {
            "step_s": SLOT_S,
            "end": end * SLOT_S,
            "accepted": [round(slot.accepted / SLOT_S, 2) for slot in rows],
            "delivered": [round(slot.delivered / SLOT_S, 2) for slot in rows],
            "failed": [round(slot.failed / SLOT_S, 2) for slot in rows],
            "ack_p50_ms": [_ms(quantile(slot.acks, self._ack_bounds, 0.5)) for slot in rows],
            "ack_p99_ms": [_ms(quantile(slot.acks, self._ack_bounds, 0.99)) for slot in rows],
            "now": {
                "seconds": seconds,
                "accepted": round(recent.accepted / seconds, 2),
                "delivered": round(recent.delivered / seconds, 2),
                "failed": round(recent.failed / seconds, 2),
                "ack_p50_ms": _ms(quantile(recent.acks, self._ack_bounds, 0.5)),
                "ack_p99_ms": _ms(quantile(recent.acks, self._ack_bounds, 0.99)),
            },
        }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)
