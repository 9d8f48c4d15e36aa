"""The typed face of the replicated mail queue: what `smtp`, `delivery`, `admin` and `cli` call, on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from smtpraft.spool.types import Changes, EndedMessage, Envelope, MessageId, MessageInfo, Outcome
from smtpraft.types import NodeId

if TYPE_CHECKING:
    from smtpraft.spool.machine import SpoolMachine


class Replicator(Protocol):
    """What the client needs of `cluster.Node`."""

    async def replicate(self, command: bytes, *, deadline_s: float | None = None) -> object:
        """Return the machine's result. Raises NotReplicated, OutcomeUnknown or Stopped."""

    async def read_index(self, *, deadline_s: float | None = None) -> int:
        """Return once this node has applied everything that was committed when it was called."""

    async def read_entry(self, index: int) -> bytes:
        """Return the command in the entry at `index`, verified. Raises a LookupError once the log has forgotten it."""


class SpoolClient:
    """The queue, for code on the event loop. One per node."""

    def __init__(self, node: Replicator, machine: SpoolMachine) -> None:
        self._node = node
        self._machine = machine

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Deliver changes to subscribers on `loop` from now on. Call once, before the node starts."""
        raise NotImplementedError

    async def close(self) -> None:
        """Stop the reader and the tasks. Call after delivery has stopped, before the node stops."""
        raise NotImplementedError

    async def accept(self, envelope: Envelope, content: Sequence[bytes], *, deadline_s: float) -> MessageId:
        """Queue a message on a majority of the nodes; return its id, which the `250` may show.

        `content` is the final message, `Received:` included, in pieces of any size.

        Raises:
            NotReplicated: it is not queued and never will be; the sender may be told 4yz.
            OutcomeUnknown: it may be queued; say nothing, close the connection.
            Stopped: nothing was handed to the cluster.
        """
        raise NotImplementedError

    async def report(self, outcomes: Sequence[Outcome]) -> list[bool]:
        """Record outcomes; return which of them counted (False: stale, the message is not ours or not there any more).

        Everything that arrives while one report is under way goes into the next one. It is repeated until the cluster has
        taken it, which is harmless: see `Result.attempt`.

        Raises:
            Stopped: the node stops; whether they were recorded is not known.
        """
        raise NotImplementedError

    async def hold(self, ids: Sequence[MessageId] | None) -> int:
        """Deliver these messages (None: all) no more until released. Return how many that changed."""
        raise NotImplementedError

    async def release(self, ids: Sequence[MessageId] | None) -> int:
        """Let held messages go. Return how many that changed."""
        raise NotImplementedError

    async def delete(self, ids: Sequence[MessageId] | None) -> int:
        """Remove messages for good, without a bounce. Return how many were there."""
        raise NotImplementedError

    async def flush(self, ids: Sequence[MessageId] | None) -> int:
        """Make deferred recipients due now (held messages stay held). Return how many messages that changed."""
        raise NotImplementedError

    async def list_messages(
        self, *, limit: int, after: MessageId | None = None, linearizable: bool = True
    ) -> list[MessageInfo]:
        """Return up to `limit` queued messages with an id above `after`, in the order of acceptance.

        Linearizable: as of a moment after the call (a round to the leader); otherwise what this node knows.
        """
        raise NotImplementedError

    async def get(self, message: MessageId, *, linearizable: bool = True) -> MessageInfo | None:
        """Return a queued message, or None if it is not (or no longer) there."""
        raise NotImplementedError

    async def ended(self, message: MessageId) -> EndedMessage | None:
        """Return how a message left the queue, if it is among the last 10,000 to do so."""
        raise NotImplementedError

    async def body(self, message: MessageId | MessageInfo) -> list[bytes]:
        """Return the bytes of a message, in parts of up to about 1 MiB. Give the info if you have it: it saves a query.

        Raises:
            MessageNotFound: it has left the queue.
        """
        raise NotImplementedError

    async def owned(self, node: NodeId, after: MessageId | None, limit: int) -> list[MessageInfo]:
        """Return up to `limit` messages that `node` owns with an id above `after`, held ones too: for start and take-over."""
        raise NotImplementedError

    async def due(self, node: NodeId, until_ms: int, limit: int) -> list[MessageInfo]:
        """Return up to `limit` deferred, not held messages of `node` whose next attempt is at most `until_ms`, soonest first."""
        raise NotImplementedError

    def counts(self) -> dict[str, int]:
        """Return what the queue holds, without touching the disk.

        `queued`, `deferred`, `held` (messages by state), `messages` (their sum), `recipients` (open ones), `bytes`, `owned`
        (messages of this node); since the queue began: `accepted`, `bounces`, `delivered`, `failed`, `expired` (recipients),
        `deferrals`, `deleted`, `moved`.
        """
        raise NotImplementedError

    def now_ms(self) -> int:
        """Return the machine's time now: the last stamp applied plus what has passed here since. Compare schedules with it."""
        raise NotImplementedError

    def subscribe(self, callback: Callable[[Changes], None]) -> None:
        """Call `callback` on the loop after each applied batch that changed something for this node. It must not block."""
        raise NotImplementedError
