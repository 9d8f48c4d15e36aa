"""Where a message is, and what became of it: each member answers for its own log, disk and queue.

where   which nodes have the message: in the log, synced, applied, in the queue
trace   its life: accepted, taken over, tried, ended; from the replicated state, with each node's `where`
"""

from __future__ import annotations

import contextlib
from typing import Final, Protocol

from smtpraft.admin.views import JsonObject, message_view
from smtpraft.cluster.requests import Arguments
from smtpraft.cluster.status import NodeStatus
from smtpraft.errors import NotReplicated
from smtpraft.spool.client import SpoolClient
from smtpraft.spool.types import (
    ORDINAL_BITS,
    EndedMessage,
    MessageId,
    MessageInfo,
    Recipient,
    index_of,
    parse_message_id,
)
from smtpraft.types import NodeId, node_order

OPERATION: Final = "where"
ASK_S: Final = 2.0


class TracingNode(Protocol):
    """What is needed of `cluster.Node`."""

    def status(self) -> NodeStatus: ...

    async def ask_members(
        self, operation: str, arguments: Arguments, *, timeout_s: float
    ) -> dict[NodeId, object | None]: ...


class Tracing:
    """For one node."""

    def __init__(self, node: TracingNode, client: SpoolClient) -> None:
        self._node = node
        self._client = client

    async def here(self, arguments: Arguments) -> object:
        """Return what this node has of the message `arguments["id"]`.

        Raises:
            ValueError: that is no id.
        """
        message = parse_message_id(str(arguments.get("id")))
        status = self._node.status()
        info = await self._client.get(message, linearizable=False)
        ended = None if info else await self._client.ended(message)
        index = index_of(message)
        parts = [part.number >> ORDINAL_BITS for part in info.parts] if info else [index]
        return {
            "index": index,
            "in_log": all(status.first_index <= part <= status.last_index for part in parts),
            "synced": status.durable_index >= index,
            "applied": status.applied_index >= index,
            "queued": info is not None,
            "state": info.state if info else ended.how if ended else None,
            "owner": info.owner if info else None,
            "durable_index": status.durable_index,
            "applied_index": status.applied_index,
            "role": status.role,
        }

    async def where(self, message: MessageId) -> JsonObject:
        """Return what every member has of `message`."""
        with contextlib.suppress(NotReplicated):  # without a majority: what they know is wanted all the more
            await self._client.get(message)  # what was answered with 250 is applied here after it
        answers = await self._node.ask_members(OPERATION, {"id": message}, timeout_s=ASK_S)
        nodes: list[JsonObject] = []
        for node in sorted(answers, key=node_order):
            facts = answers[node]
            row: JsonObject = {"id": node, "answers": isinstance(facts, dict)}
            nodes.append(row | facts if isinstance(facts, dict) else row)
        return {
            "id": message,
            "index": index_of(message),
            "voters": list(self._node.status().voters),
            "synced_on": [row["id"] for row in nodes if row.get("synced")],
            "nodes": nodes,
        }

    async def trace(self, message: MessageId) -> JsonObject | None:
        """Return the life of `message`, None if neither the queue nor the last 10,000 that left it know of it."""
        where = await self.where(message)
        info = await self._client.get(message, linearizable=False)
        ended = None if info else await self._client.ended(message)
        if info is None and ended is None:
            return None
        life = _life(info) if info else []
        if ended:
            life = _end(ended)
        life.sort(key=lambda step: (step["time"] is None, step["time"] or 0))
        return where | {"message": message_view(info) if info else None, "steps": life}


def _life(info: MessageInfo) -> list[JsonObject]:
    steps = [
        _step(info.accepted_ms, "accepted", info.accepted_by, f"from <{info.sender}> by {info.client_host or 'itself'}")
    ]
    if info.owner != info.accepted_by:
        steps.append(
            _step(0, "taken over", info.owner, f"owned by {info.owner} since index {info.epoch}", index=info.epoch)
        )
    steps += [_tried(recipient, info.owner) for recipient in info.recipients if recipient.last_attempt_ms]
    if info.held:
        steps.append(_step(0, "held", info.owner, "not delivered until it is released"))
    for recipient in info.recipients:
        if not recipient.state.final and recipient.next_attempt_ms:
            text = f"<{recipient.address}>: attempt {recipient.attempts + 1} is due"
            steps.append(_step(recipient.next_attempt_ms, "next", info.owner, text))
    return steps


def _end(ended: EndedMessage) -> list[JsonObject]:
    steps = [_step(ended.accepted_ms, "accepted", None, f"from <{ended.sender}>")]
    steps += [_tried(recipient, ended.node) for recipient in ended.recipients if recipient.last_attempt_ms]
    text = "left the queue" if ended.how == "done" else "deleted by an operator"
    return [*steps, _step(ended.ended_ms, ended.how, ended.node, text, index=ended.ended_index)]


def _tried(recipient: Recipient, node: NodeId) -> JsonObject:
    text = f"<{recipient.address}>: {recipient.last_status} {recipient.last_reply}".rstrip()
    return _step(recipient.last_attempt_ms, str(recipient.state.value), node, text, attempts=recipient.attempts)


def _step(time_ms: int, what: str, node: NodeId | None, text: str, **facts: object) -> JsonObject:
    return {"time": time_ms / 1000 if time_ms else None, "what": what, "node": node, "text": text, **facts}
