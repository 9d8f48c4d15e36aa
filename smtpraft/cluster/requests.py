"""Questions from node to node, each with one answer: how any node can be asked what only the leader can do.

Frames on the control connection, of the driver's own types; both hold MessagePack:

    33 ASK     (number, operation, arguments)
    34 ANSWER  (number, error or "", value)

Nothing is repeated: a question that meets silence ends in `OutcomeUnknown`, and may have been carried out.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from smtpraft.cluster.transport import Transport
from smtpraft.errors import NotReplicated, OutcomeUnknown, SmtpRaftError
from smtpraft.fastlog import CorruptFrame, encode_frame
from smtpraft.types import NodeId

log = logging.getLogger(__name__)

FRAME_ASK: Final = 33
FRAME_ANSWER: Final = 34
FRAMES: Final = (FRAME_ASK, FRAME_ANSWER)
ASKED_MAX: Final = 64  # questions that are being carried out for others
ANSWER_BYTES_MAX: Final = 12 * 1024  # what the control connection carries, less a margin

Arguments = dict[str, Any]
Handler = Callable[[str, Arguments], Awaitable[object]]


class Declined(SmtpRaftError):
    """The node that was asked says no; the text says why."""


class _Ask(msgspec.Struct, array_like=True):
    number: int
    operation: str
    arguments: Arguments


class _Answer(msgspec.Struct, array_like=True):
    number: int
    error: str
    value: object = None


class Requests:
    """The questions of one node, and those that it is asked. Loop thread only."""

    def __init__(self, transport: Transport, carry_out: Handler) -> None:
        self._transport = transport
        self._carry_out = carry_out
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[NodeId, asyncio.Future[object]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, peer: NodeId, operation: str, arguments: Arguments, timeout_s: float) -> object:
        """Return what `peer` answers.

        Raises:
            Declined: it says no.
            NotReplicated: it cannot be reached.
            OutcomeUnknown: it did not answer in time.
        """
        number = next(self._numbers)
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._waiting[number] = peer, future
        try:
            word = msgspec.msgpack.encode(_Ask(number, operation, arguments))
            if not self._transport.send_control(peer, encode_frame(FRAME_ASK, word)):
                raise NotReplicated(f"{peer} cannot be reached from here")
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            raise OutcomeUnknown(f"{peer} did not answer within {timeout_s:g} s") from None
        finally:
            del self._waiting[number]

    def receive(self, peer: NodeId, kind: int, head: bytes) -> None:
        """Take in a question or an answer of `peer`.

        Raises:
            CorruptFrame: it is neither.
        """
        try:
            if kind == FRAME_ANSWER:
                self._answered(peer, msgspec.msgpack.decode(head, type=_Answer))
                return
            question = msgspec.msgpack.decode(head, type=_Ask)
        except msgspec.DecodeError as error:
            raise CorruptFrame(f"neither question nor answer: {error}") from None
        if len(self._tasks) >= ASKED_MAX:
            self._reply(peer, _Answer(question.number, "too many questions at once; try again"))
            return
        task = asyncio.get_running_loop().create_task(self._serve(peer, question), name=f"asked-{question.operation}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def lost(self, peer: NodeId) -> None:
        """`peer` cannot be reached: what it was asked stays unanswered."""
        for asked, future in self._waiting.values():
            if asked == peer and not future.done():
                future.set_exception(OutcomeUnknown(f"the connection to {peer} was lost; look before you ask again"))

    def close(self) -> None:
        """Carry nothing out any more."""
        for task in self._tasks:
            task.cancel()

    def _answered(self, peer: NodeId, answer: _Answer) -> None:
        asked, future = self._waiting.get(answer.number, (peer, None))
        if future is None or future.done() or asked != peer:
            return
        if answer.error:
            future.set_exception(Declined(answer.error))
        else:
            future.set_result(answer.value)

    async def _serve(self, peer: NodeId, question: _Ask) -> None:
        try:
            answer = _Answer(question.number, "", await self._carry_out(question.operation, question.arguments))
        except (SmtpRaftError, ValueError, TypeError, KeyError) as error:
            answer = _Answer(question.number, str(error) or type(error).__name__)
        self._reply(peer, answer)

    def _reply(self, peer: NodeId, answer: _Answer) -> None:
        word = msgspec.msgpack.encode(answer)
        if len(word) > ANSWER_BYTES_MAX:
            word = msgspec.msgpack.encode(_Answer(answer.number, "the answer is too long for this connection"))
        self._transport.send_control(peer, encode_frame(FRAME_ANSWER, word))
