"""What this node wants in the log and has not seen applied yet: proposals, their retries, deadlines and withdrawal.

A proposal is repeated after every change of leader and after silence; sessions make the repeats harmless. When its
deadline passes it is withdrawn: at once if no copy ever left this node's hands, otherwise by a CANCEL through the log,
and whichever of the two the log applies first decides. Only if even that cannot be learnt in time is the outcome
unknown.

Runs on the loop thread; nothing here awaits. Times are seconds, monotonic, given by the caller.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Final

from smtpraft.cluster import envelope
from smtpraft.errors import Fatal, NotReplicated, OutcomeUnknown, Stopped
from smtpraft.types import NodeId

RETRY_FIRST_S: Final = 1.0  # silence from a living leader; a dead one is noticed sooner by its successor's election
RETRY_MAX_S: Final = 8.0
OPEN_RETRY_S: Final = 1.0
PATIENCE_S: Final = 0.005  # so long what is in no hurry waits for something to go with
PROPOSE_BATCH_BYTES: Final = 4 * 1024 * 1024  # one frame to the leader at most


Done = Callable[[object, Exception | None], None]
"""Called once, on the loop thread: with the machine's answer, or with an error (NotReplicated, OutcomeUnknown or
Stopped). Often within a turn of the driver: it must not raise, nor propose anything before the next one.
"""
Committed = Callable[[], object]
"""Called at most once, before `Done`, once the command is committed and certain to be applied; of the same kind. No
deadline counts after that: the answer comes when the machine has got so far."""


@dataclass(slots=True, eq=False)
class Proposal:
    """One command on its way. `seq` is 0 until a session is open."""

    command: bytes
    done: Done
    deadline: float
    give_up_after_s: float
    seq: int = 0
    handed_out: bool = False
    cancelling: bool = False
    retry_at: float = 0.0
    retry_s: float = RETRY_FIRST_S
    foreseen: Callable[[int], object] | None = None
    """What the machine will answer to it, given the index of its entry; None if only the machine can say."""
    committed: Committed | None = None
    """Whoever gives it needs the machine's answer some time, and no sooner than others bring it about."""

    @property
    def eager(self) -> bool:
        """Does somebody wait for what the machine answers?"""
        return self.foreseen is None and self.committed is None


@dataclass(slots=True)
class _Down:
    """That a session ends. `term` is the one in which this node led and judged so; 0 if it ends its own."""

    payload: bytes
    term: int
    retry_at: float = 0.0


class Proposals:
    """The proposals of one node, in order."""

    def __init__(
        self, node: NodeId, *, max_pending_bytes: int, random_bytes: Callable[[int], bytes] = secrets.token_bytes
    ) -> None:
        """`random_bytes` makes the nonces of sessions; only a simulation has another one than the system's."""
        self._node = node
        self._random_bytes = random_bytes
        self._max_pending_bytes = max_pending_bytes
        self._pending_bytes = 0
        self._eager = 0
        self._hurried = False
        self._unassigned: deque[Proposal] = deque()
        self._by_seq: dict[int, Proposal] = {}
        self._outbox: deque[Proposal] = deque()
        self._seqs = itertools.count(1)
        self._next_seq = 1
        self._nonce = self._random_bytes(envelope.NONCE_BYTES)
        self._open_at = 0.0
        self._wanted = False
        self._down: dict[int, _Down] = {}
        self._foreseen: dict[int, tuple[int, object]] = {}
        """seq -> index and what was answered, until the machine has said the same; in the order of the log."""
        self._certain: dict[int, tuple[int, Proposal]] = {}
        """seq -> index and who was told of the commit, until the machine answers; in the order of the log. Nothing is
        repeated or withdrawn any more, however long that takes, and `done_below` does not wait for it."""
        self.session = 0
        """This node's open session as far as it has applied the log; 0 if none."""
        self.failed_count = 0
        """Proposals that were withdrawn, refused or given up."""

    def __len__(self) -> int:
        return len(self._unassigned) + len(self._by_seq) + len(self._certain)

    @property
    def waiting(self) -> bool:
        """Does somebody here wait for the machine? Not for what is foreseen, nor who is content with the commit."""
        return self._eager > 0 or (self._wanted and not self.session)

    @property
    def nonce(self) -> bytes:
        """What the session that this node has, or asks for, was opened with."""
        return self._nonce

    @property
    def pending_bytes(self) -> int:
        """Bytes of commands that are not resolved."""
        return self._pending_bytes

    def submit(
        self,
        command: bytes,
        loop: asyncio.AbstractEventLoop,
        deadline: float,
        give_up_after_s: float,
        foreseen: Callable[[int], object] | None = None,
    ) -> asyncio.Future[object]:
        """As `propose`; the future gets what `done` would. Cancelling it withdraws nothing."""
        future: asyncio.Future[object] = loop.create_future()
        self.propose(command, partial(settle, future), deadline, give_up_after_s, foreseen)
        return future

    def propose(
        self,
        command: bytes,
        done: Done,
        deadline: float,
        give_up_after_s: float,
        foreseen: Callable[[int], object] | None = None,
        committed: Committed | None = None,
    ) -> None:
        """Queue `command`; `done` hears what became of it.

        `foreseen` says what the machine will answer, given the index of the entry; see `foresight`. `committed` hears
        of the commit, and its giver is in no hurry for the answer: not both.

        Raises:
            NotReplicated: too many bytes wait already; `done` hears nothing.
        """
        if self._pending_bytes and self._pending_bytes + len(command) > self._max_pending_bytes:
            raise NotReplicated(f"{self._pending_bytes} bytes of commands wait for a majority already")
        proposal = Proposal(
            command,
            done,
            deadline,
            give_up_after_s,
            foreseen=foreseen,
            committed=committed,
        )
        self._eager += proposal.eager
        self._pending_bytes += len(command)
        if self.session:
            self._assign(proposal)
        else:
            self._unassigned.append(proposal)

    def open_wanted(self) -> None:
        """Keep asking for a session whenever this node has none."""
        self._wanted = True

    def close_wanted(self) -> None:
        """Ask for no further session: this node is leaving."""
        self._wanted = False

    def take(self, now: float, leading_term: int = 0, *, in_company: bool = False) -> list[bytes]:
        """Return payloads to propose now, oldest first and bounded in bytes; empty if there are none.

        `leading_term` is the term that this node leads in, 0 if another node leads. `in_company`: others propose with
        them, so that what is in no hurry costs no write and no frames of its own.
        """
        payloads: list[bytes] = []
        size_bytes = 0
        if self._wanted and not self.session and now >= self._open_at:
            self._open_at = now + OPEN_RETRY_S
            payloads.append(envelope.encode_open(self._nonce, self._node))
        for down in self._down.values():
            # A leader that stood still judges by what it knew before. When it wakes it may hear of its successor before
            # it proposes: its verdict on nodes that the successor has granted leases to must not go there.
            if now >= down.retry_at and down.term in (0, leading_term):
                down.retry_at = now + OPEN_RETRY_S
                payloads.append(down.payload)
        if not self.session or not (payloads or in_company or self._is_time()):
            return payloads
        self._hurried = False
        outbox = self._outbox
        done_below = next(iter(self._by_seq), self._next_seq)
        while outbox and size_bytes < PROPOSE_BATCH_BYTES:
            proposal = outbox.popleft()
            if proposal.seq not in self._by_seq:
                continue
            if proposal.cancelling:
                payload = envelope.encode_cancel(self.session, proposal.seq)
            else:
                payload = envelope.encode_command(self.session, proposal.seq, done_below, proposal.command)
            proposal.handed_out = True
            proposal.retry_at = now + proposal.retry_s
            proposal.retry_s = min(2 * proposal.retry_s, RETRY_MAX_S)
            payloads.append(payload)
            size_bytes += len(payload)
        return payloads

    @property
    def has_some(self) -> bool:
        """Whether `take` might return anything, now or later."""
        return bool(self._outbox) or bool(self._down) or (self._wanted and not self.session)

    def hurry(self, then: Callable[[], object]) -> None:
        """What is in no hurry has waited for `PATIENCE_S`: if it still does, the next `take` takes it, and `then`."""
        if self._outbox:
            self._hurried = True
            then()

    def _is_time(self) -> bool:
        """Is there anything to hand out but what is in no hurry, or has that waited long enough?"""
        if self._hurried:
            return bool(self._outbox)
        return any(proposal.committed is None or proposal.handed_out for proposal in self._outbox)

    def has_work(self, now: float) -> bool:
        """Whether `take` would return anything."""
        if self.session:
            return bool(self._down) or self._is_time()
        return (self._wanted and now >= self._open_at) or bool(self._down)

    def retry_all(self) -> None:
        """Whoever was given our proposals may have lost them: hand all of them out again, in order."""
        self._open_at = 0.0
        for down in self._down.values():
            down.retry_at = 0.0
        self._outbox = deque(self._by_seq.values())

    def propose_down(self, session: int, payload: bytes, leading_term: int = 0) -> None:
        """Keep proposing that `session` ends until it has.

        Another node's session only as its leader, and only while that leadership in `leading_term` lasts.
        """
        assert leading_term or session == self.session, f"session {session} is not this node's to end"
        self._down.setdefault(session, _Down(payload, leading_term))

    def forget_downs(self) -> None:
        """This node leads no longer: who is down is for another to judge."""
        self._down.clear()

    def sessions_changed(self, open_sessions: dict[NodeId, int]) -> None:
        """The log opened or closed sessions; `open_sessions` are those open now."""
        alive = set(open_sessions.values())
        self._down = {session: down for session, down in self._down.items() if session in alive}
        if self.session and open_sessions.get(self._node) != self.session:
            self._session_closed()

    def session_opened(self, session: int, nonce: bytes) -> None:
        """The log opened a session for this node; not ours if a former process of this node had asked for it."""
        if nonce != self._nonce:
            return
        self.session = session
        while self._unassigned:
            self._assign(self._unassigned.popleft())

    def foresee(self, seq: int, index: int) -> None:
        """Our command `seq` is committed at `index` in the open session, and nothing before it takes it away."""
        proposal = self._by_seq.get(seq)
        if proposal is None:
            return
        if (committed := proposal.committed) is not None:
            del self._by_seq[seq]
            self._certain[seq] = index, proposal
            self._pending_bytes -= len(proposal.command)
            proposal.command = b""
            committed()
            return
        if proposal.foreseen is None:
            return
        del self._by_seq[seq]
        answer = proposal.foreseen(index)
        self._foreseen[seq] = index, answer
        self._finish(proposal, answer)

    def withdrawn(self, seq: int) -> None:
        """A cancel of our command `seq` is committed: what becomes of it, the machine will say."""
        if (proposal := self._by_seq.get(seq)) is not None:
            self._eager += not proposal.eager
            proposal.foreseen = proposal.committed = None

    def resolved(self, session: int, seq: int, result: object) -> None:
        """The log applied our command `seq`.

        Raises:
            Fatal: the machine's answer is not the one that was foreseen, and given.
        """
        if session != self.session:
            return
        if (proposal := self._by_seq.pop(seq, None)) is not None:
            self._finish(proposal, result)
        elif seq in self._certain:
            self._finish(self._certain.pop(seq)[1], result)
        elif self._foreseen:
            _, answer = self._foreseen.pop(seq, (0, result))
            if answer != result:
                raise Fatal(
                    f"command {seq} of session {session} was answered {answer!r}; the machine answers {result!r}"
                )

    def applied(self, index: int) -> None:
        """All that the log up to `index` brought was told here.

        Raises:
            Fatal: what was foreseen, and given, did not come.
        """
        if self._foreseen:
            seq, (at, answer) = next(iter(self._foreseen.items()))
            if at <= index:
                raise Fatal(f"command {seq} of session {self.session} was answered {answer!r}, but not applied at {at}")
        if self._certain:
            seq, (at, _) = next(iter(self._certain.items()))
            if at <= index:
                raise Fatal(f"command {seq} of session {self.session} was called committed, but not applied at {at}")

    def overtaken(self, session: int, done_below: int, done: Collection[int]) -> None:
        """A snapshot stands for entries that this node has not seen; in it our session is `session` (0: none is open),
        and of that all below `done_below` and those in `done` were applied or cancelled: which, nobody can say.
        """
        self._foreseen.clear()  # the machine will not answer these any more
        for seq, proposal in list(self._by_seq.items()):
            if proposal.handed_out and (session != self.session or seq < done_below or seq in done):
                del self._by_seq[seq]
                self._fail(proposal, OutcomeUnknown("this node was behind, and a snapshot does not tell what became"))
        certain, self._certain = self._certain, {}
        for _, proposal in certain.values():
            self._fail(proposal, OutcomeUnknown("it is applied, but a snapshot does not tell with what answer"))

    def cancelled(self, session: int, seq: int) -> None:
        """The log passed our cancel of `seq`; had the command been applied before, it were resolved by now."""
        if session == self.session and (proposal := self._by_seq.pop(seq, None)) is not None:
            self._fail(proposal, NotReplicated("withdrawn: no majority answered in time"))

    def sweep(self, now: float) -> None:
        """Withdraw what is overdue, give up what could not be withdrawn, repeat what met silence."""
        for _ in range(len(self._unassigned)):
            waiting = self._unassigned.popleft()
            if waiting.deadline <= now:
                self._fail(waiting, NotReplicated("no majority in time"))
            else:
                self._unassigned.append(waiting)
        overdue = [proposal for proposal in self._by_seq.values() if now >= min(proposal.deadline, proposal.retry_at)]
        for proposal in overdue:
            if now >= proposal.deadline:
                self._overdue(proposal, now)
            elif proposal.handed_out:
                proposal.retry_at = now + proposal.retry_s
                self._outbox.append(proposal)

    def close(self) -> None:
        """Resolve everything: this process will learn nothing more."""
        certain = [proposal for _, proposal in self._certain.values()]
        for proposal in [*self._unassigned, *certain, *self._by_seq.values()]:
            if proposal.handed_out:
                self._fail(proposal, OutcomeUnknown("the node stopped before a majority answered"))
            else:
                self._fail(proposal, Stopped("the node is stopping"))
        self._unassigned.clear()
        self._by_seq.clear()
        self._certain.clear()
        self._outbox.clear()

    def _assign(self, proposal: Proposal) -> None:
        proposal.seq = next(self._seqs)
        self._next_seq = proposal.seq + 1
        self._by_seq[proposal.seq] = proposal
        self._outbox.append(proposal)

    def _session_closed(self) -> None:
        """No copy that was handed out under the old session can be applied any more: start them afresh."""
        self.session = 0
        self._nonce = self._random_bytes(envelope.NONCE_BYTES)
        self._open_at = 0.0
        self._outbox.clear()
        for proposal in self._by_seq.values():
            if proposal.cancelling:
                self._fail(proposal, NotReplicated("withdrawn: no majority answered in time"))
            else:
                proposal.handed_out = False
                proposal.seq = 0
                proposal.retry_s = RETRY_FIRST_S
                self._unassigned.append(proposal)
        self._by_seq.clear()

    def _overdue(self, proposal: Proposal, now: float) -> None:
        if not proposal.handed_out:
            del self._by_seq[proposal.seq]
            self._fail(proposal, NotReplicated("no majority in time"))
        elif proposal.cancelling:
            # Later commands will say `done_below` past this one, so a copy that is still under way comes too late.
            del self._by_seq[proposal.seq]
            self._fail(proposal, OutcomeUnknown("neither the command nor its withdrawal reached a majority in time"))
        else:
            proposal.cancelling = True
            proposal.deadline = now + proposal.give_up_after_s
            proposal.retry_s = RETRY_FIRST_S
            self._outbox.append(proposal)

    def _finish(self, proposal: Proposal, result: object) -> None:
        self._pending_bytes -= len(proposal.command)
        self._eager -= proposal.eager
        proposal.done(result, None)

    def _fail(self, proposal: Proposal, error: Exception) -> None:
        self.failed_count += 1
        self._pending_bytes -= len(proposal.command)
        self._eager -= proposal.eager
        proposal.done(None, error)


def settle(future: asyncio.Future[object], result: object, error: Exception | None) -> None:
    """Give a future what a `Done` is given, unless it was cancelled."""
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
        future.exception()  # a caller that was cancelled left nobody to look at it
