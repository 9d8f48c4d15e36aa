"""A mail queue in memory that follows the rules of the replicated one: the test double that delivery runs on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import msgspec

from smtpraft.spool.types import (
    WHENEVER_MS,
    Changes,
    MessageId,
    MessageInfo,
    MessageNotFound,
    Outcome,
    Recipient,
    RecipientState,
    message_id,
)
from smtpraft.types import NodeId

ME = NodeId("node-1")
OTHER = NodeId("node-2")


class FakeNode:
    """Holds a lease while `lease` is true; `asked` counts the questions."""

    def __init__(self) -> None:
        self.node_id = ME
        self.lease = True
        self.asked = 0
        self.on_ask: Callable[[int], None] = lambda count: None

    def lease_valid(self, margin_s: float = 0.0) -> bool:
        self.asked += 1
        self.on_ask(self.asked)
        return self.lease


class FakeQueue:
    """What `Delivery` sees of `SpoolClient`. `offset_ms` moves the machine's time."""

    def __init__(self, *, commit_s: float = 0.0) -> None:
        self.infos: dict[MessageId, MessageInfo] = {}
        self.bodies: dict[MessageId, list[bytes]] = {}
        self.outcomes: list[Outcome] = []
        self.bounces: list[tuple[MessageId, bytes]] = []
        self.ended: dict[MessageId, MessageInfo] = {}
        self.offset_ms = 0
        self.commit_s = commit_s
        self.reports = 0
        self.reads = 0
        self.found = 0
        self._callbacks: list[Callable[[Changes], None]] = []
        self._index = 0
        self._changed = asyncio.Event()
        self._started = time.monotonic()

    # --- What delivery uses

    def now_ms(self) -> int:
        return 1_700_000_000_000 + int((time.monotonic() - self._started) * 1000) + self.offset_ms

    def subscribe(self, callback: Callable[[Changes], None]) -> None:
        self._callbacks.append(callback)

    def subscribe_committed(self, callback: Callable[[Sequence[MessageInfo]], None]) -> None:
        """What is put here is applied at once."""

    async def report(self, outcomes: Sequence[Outcome], committed: Callable[[int], object] | None = None) -> list[bool]:
        self.reports += 1
        await asyncio.sleep(self.commit_s)
        if committed is not None:
            committed(len(outcomes))
        return [self._apply(outcome) for outcome in outcomes]

    async def get(self, message: MessageId, *, linearizable: bool = True) -> MessageInfo | None:
        self.reads += 1
        return self.infos.get(message)

    async def body(self, message: MessageId | MessageInfo) -> list[bytes]:
        await asyncio.sleep(0)
        name = message.id if isinstance(message, MessageInfo) else message
        if name not in self.infos:
            raise MessageNotFound(name)
        return self.bodies[name]

    async def owned(
        self, node: NodeId, after: MessageId | None, limit: int, due_by_ms: int = WHENEVER_MS
    ) -> list[MessageInfo]:
        self.reads += 1
        ours = (info for info in self.infos.values() if info.owner == node and not info.held)
        mine = sorted(info.id for info in ours if info.id > (after or "") and info.next_attempt_ms <= due_by_ms)
        found = [self.infos[i] for i in mine[:limit]]
        self.found += len(found)
        await asyncio.sleep(0)
        return found

    async def due(self, node: NodeId, until_ms: int, limit: int) -> list[MessageInfo]:
        self.reads += 1
        mine = [i for i in self.infos.values() if i.owner == node and not i.held]
        mine = sorted((i for i in mine if 0 < i.next_attempt_ms <= until_ms), key=lambda i: i.next_attempt_ms)
        await asyncio.sleep(0)
        return mine[:limit]

    # --- What the rest of the world does

    def accept(
        self,
        recipients: Sequence[str],
        content: bytes | Sequence[bytes] = b"Subject: hello\r\n\r\nworld\r\n",
        *,
        sender: str = "sender@example.net",
        owner: NodeId = ME,
        smtputf8: bool = False,
        silent: bool = False,
    ) -> MessageInfo:
        """Queue a message; `silent`: as if it had been there before delivery started."""
        self._index += 1
        blocks = [content] if isinstance(content, bytes) else list(content)
        info = MessageInfo(
            id=message_id(self._index),
            owner=owner,
            epoch=1,
            sender=sender,
            recipients=tuple(Recipient(i, address) for i, address in enumerate(recipients)),
            size_bytes=sum(map(len, blocks)),
            accepted_ms=self.now_ms(),
            held=False,
            is_bounce=False,
            smtputf8=smtputf8,
            body_8bitmime=False,
            accepted_by=owner,
            client_host="192.0.2.1",
            helo="client.example",
            auth="",
            parts=(),
        )
        self.infos[info.id] = info
        self.bodies[info.id] = blocks
        if owner == ME and not silent:
            self.tell(accepted=(info,))
        return info

    def move(self, info: MessageInfo, owner: NodeId) -> MessageInfo:
        """Give a message to `owner` under a new epoch."""
        info = self.infos[info.id]
        moved = msgspec.structs.replace(info, owner=owner, epoch=info.epoch + 1)
        self.infos[info.id] = moved
        if owner == ME:
            self.tell(moved_here=(moved,))
        elif info.owner == ME:
            self.tell(moved_away=(info.id,))
        return moved

    def hold(self, info: MessageInfo) -> None:
        self.infos[info.id] = msgspec.structs.replace(self.infos[info.id], held=True)
        self.tell(held=(info.id,))

    def release(self, info: MessageInfo) -> None:
        self.infos[info.id] = msgspec.structs.replace(self.infos[info.id], held=False)
        self.tell(released=(self.infos[info.id],))

    def delete(self, info: MessageInfo) -> None:
        del self.infos[info.id]
        self.tell(deleted=(info.id,))

    def flush(self) -> None:
        """Everything deferred is due now."""
        for message, info in self.infos.items():
            recipients = tuple(msgspec.structs.replace(r, next_attempt_ms=0) for r in info.recipients)
            self.infos[message] = msgspec.structs.replace(info, recipients=recipients)
        self.tell(flushed=tuple(info for info in self.infos.values() if info.owner == ME))

    def tell(self, **lists: object) -> None:
        """Call the subscribers, as after an applied batch."""
        changes = msgspec.convert({"applied_index": self._index, **lists}, Changes)
        self._changed.set()
        for callback in self._callbacks:
            callback(changes)

    async def wait(self, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Return when `condition` is true; it is asked after each change."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def wait_empty(self, timeout_s: float = 10.0) -> None:
        """Return when no message of this node is left."""
        await self.wait(lambda: not any(info.owner == ME for info in self.infos.values()), timeout_s)

    def _apply(self, outcome: Outcome) -> bool:
        """By the rules of `Outcome`: all or nothing, current epoch, recipients open, attempts unrecorded."""
        self.outcomes.append(outcome)
        info = self.infos.get(outcome.message)
        if info is None or info.epoch != outcome.epoch or info.owner != ME:
            return False
        recipients = {recipient.ordinal: recipient for recipient in info.recipients}
        for result in outcome.results:
            old = recipients[result.ordinal]
            if old.state.final or result.attempt <= old.attempts:
                return False
            recipients[result.ordinal] = msgspec.structs.replace(
                old,
                state=result.state,
                attempts=result.attempt,
                next_attempt_ms=self.now_ms() + result.delay_ms if result.state is RecipientState.DEFERRED else 0,
                last_attempt_ms=self.now_ms(),
                last_status=result.status,
                last_reply=result.reply,
            )
        info = msgspec.structs.replace(info, recipients=tuple(recipients.values()))
        if outcome.bounce and info.sender:
            self.bounces.append((info.id, outcome.bounce))
        if info.open_recipients:
            self.infos[info.id] = info
            self.tell(deferred=(info,))
        else:
            del self.infos[info.id]
            self.ended[info.id] = info
            self.tell(done=(info.id,))
        return True
