"""Questions that every member answers for itself: what a page about the whole cluster is made of.

They travel as `requests` do, beside Raft's own messages, and change nothing. A member that is gone, too slow or too old
to know the question costs its own answer and no other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from smtpraft.cluster.requests import Arguments, Declined
from smtpraft.errors import NotReplicated, OutcomeUnknown
from smtpraft.types import NodeId

Answering = Callable[[Arguments], Awaitable[object]]


class Asking(Protocol):
    """What is needed of `Requests`."""

    async def ask(self, peer: NodeId, operation: str, arguments: Arguments, timeout_s: float) -> object: ...


class Inquiries:
    """What one node can be asked, and how it asks all. Loop thread only."""

    def __init__(self, me: NodeId) -> None:
        self._me = me
        self._answering: dict[str, Answering] = {}

    def answer(self, operation: str, answering: Answering) -> None:
        """Have `answering` called when anybody asks `operation`; its value goes as MessagePack, in 12 KiB."""
        assert operation not in self._answering, operation
        self._answering[operation] = answering

    def knows(self, operation: str) -> bool:
        """Can `operation` be asked?"""
        return operation in self._answering

    async def carry_out(self, operation: str, arguments: Arguments) -> object:
        """Return this node's own answer."""
        return await self._answering[operation](arguments)

    async def ask_all(
        self, requests: Asking, members: Iterable[NodeId], operation: str, arguments: Arguments, timeout_s: float
    ) -> dict[NodeId, object | None]:
        """Return what each of `members` answers within `timeout_s`; None for those that do not."""

        async def ask(node: NodeId) -> object | None:
            try:
                if node == self._me:
                    async with asyncio.timeout(timeout_s):
                        return await self.carry_out(operation, arguments)
                return await requests.ask(node, operation, arguments, timeout_s)
            except (Declined, NotReplicated, OutcomeUnknown, TimeoutError):
                return None

        nodes = list(members)
        return dict(zip(nodes, await asyncio.gather(*map(ask, nodes)), strict=True))
