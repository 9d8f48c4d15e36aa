"""The apply thread: committed entries in, results out.

One thread owns the state machine. While it works, everything that commits meanwhile gathers and is applied in one
transaction, so the cost of a transaction is shared by all that waited for it. Other short jobs of the machine
(checkpoint, compaction) run on the same thread, in order.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from smtpraft import fastlog
from smtpraft.cluster import envelope
from smtpraft.cluster.machine import Command, Item, NodeDown, NodeUp, NoRoom, Skipped, StateMachine
from smtpraft.cluster.members import Changed, Members
from smtpraft.cluster.sessions import Sessions
from smtpraft.errors import Stopped
from smtpraft.types import NodeId

log = logging.getLogger(__name__)

APPLY_BATCH_BYTES: Final = (
    8 * 1024 * 1024
)  # one transaction at most, so that a long replay does not hold the results back
LAZY_BYTES_MAX: Final = 1024 * 1024  # what nobody waits for is applied at once when this much has gathered
LAZY_S: Final = 0.1  # and when it has waited for so long, give or take a tick

NO_ROOM_RETRY_S: Final = 0.25

Span = bytes | memoryview
T = TypeVar("T")


@dataclass(slots=True)
class Batch:
    """Committed entries `first` to `last`: their bytes, or None if they must be read from disk first."""

    first: int
    last: int
    size_bytes: int
    spans: Sequence[Span] | None


@dataclass(slots=True)
class Result:
    """What one transaction brought, for the loop."""

    first: int
    last: int
    stamp: int = 0
    batches: int = 0
    """How many of the submitted batches are in it, oldest first."""
    mine: list[tuple[int, int, object]] = field(default_factory=list)
    """(session, seq, result) of commands that this node proposed."""
    cancelled: list[tuple[int, int]] = field(default_factory=list)
    """(session, seq) of cancels that this node proposed and that the log has now passed."""
    nodes_changed: bool = False
    open_sessions: dict[NodeId, int] = field(default_factory=dict)
    """After this transaction; filled when `nodes_changed`."""
    opened: tuple[int, bytes] | None = None
    """(session, nonce) that was opened for this node, and is open after this transaction."""
    digest: tuple[int, int] = (0, 0)
    changes: list[Changed] = field(default_factory=list)
    """What was done to the members, in order."""
    overtaken: tuple[int, int, frozenset[int]] | None = None
    """A snapshot took the place of entries: (session, done_below, done) of this node in it; session 0: none is open."""


class _Closing(Exception):
    """What waits for room is given up: it is applied after the next start."""


class Applier:
    """Runs `machine` on a thread of its own.

    `deliver` hands a callback to the loop (thread-safe), `on_result` gets each `Result` there, `on_failure` whatever
    stopped the thread. `read_entries(first, last)` reads encoded entries from disk, on the apply thread.
    """

    def __init__(
        self,
        machine: StateMachine,
        node: NodeId,
        *,
        deliver: Callable[[Callable[[], None]], object],
        on_result: Callable[[Result], None],
        on_failure: Callable[[BaseException], None],
        read_entries: Callable[[int, int], bytes],
    ) -> None:
        self._machine = machine
        self._node = node
        self._deliver = deliver
        self._on_result = on_result
        self._on_failure = on_failure
        self._read_entries = read_entries
        self._work: deque[Batch | Callable[[], None]] = deque()
        self._jobs: deque[Future[Any]] = deque()  # of the jobs in `_work`, in that order
        self._over = False
        self._work_bytes = 0
        self._wake = threading.Condition()
        self._summon: Callable[[], object] = self._wake.notify  # called with the lock held
        self._lazy_since = 0.0
        self._closing = False
        self._sessions = Sessions()
        self._thread = threading.Thread(target=self._run, name="smtpraft-apply", daemon=True)
        self.applied_index = 0
        self.copied_index: int | None = None
        """See `Applied`; as of `open`."""
        self._machine_index = 0
        self.waiting_for_room = False

    def open(
        self, *, background: bool = True, summon: Callable[[], object] | None = None
    ) -> tuple[int, dict[NodeId, int]]:
        """Open the machine and start the thread; return the applied index and the open sessions.

        `background=False` starts none: the caller calls `work`; `summon` is called when the thread would be woken.

        Raises:
            ValueError: the machine's notes cannot be read by this release.
        """
        applied = self._machine.open()
        self._sessions = Sessions.decode(applied.notes)
        self.applied_index = self._machine_index = applied.index
        self.copied_index = applied.copied_index
        if summon is not None:
            self._summon = summon
        if background:
            self._thread.start()
        return applied.index, self._sessions.open_sessions()

    @property
    def members(self) -> Members:
        """The members as far as the log was applied before the thread was given anything; then only for that thread."""
        return self._sessions.members

    def begin_at(self, index: int) -> None:
        """Expect the entries after `index`, before any is submitted. Those that the machine has are passed over."""
        assert index <= self._machine_index
        self.applied_index = index

    def submit(self, batch: Batch, *, urgent: bool = True) -> None:
        """Apply `batch` after all that was submitted before; it must follow on from it.

        Without `urgent` it may wait for a `hurry`, or for one that is: a transaction costs the same for one entry as
        for twenty, and a message whose end comes in the transaction of its beginning costs next to nothing.
        """
        with self._wake:
            self._work.append(batch)
            self._work_bytes += batch.size_bytes
            if urgent or self._work_bytes > LAZY_BYTES_MAX:
                self._summon()

    def hurry(self) -> None:
        """Let what was submitted wait no longer."""
        self._lazy_since = 0.0
        if self._work:
            with self._wake:
                self._summon()

    def hurry_old(self, now: float) -> None:
        """Let what has waited for `LAZY_S` wait no longer; to be called with every tick."""
        if not self._work:
            self._lazy_since = 0.0
        elif not self._lazy_since:
            self._lazy_since = now
        elif now - self._lazy_since >= LAZY_S:
            self.hurry()

    def run(self, job: Callable[[], T]) -> Future[T]:
        """Run `job` on the apply thread, after what was submitted before; its result comes in the future.

        `Stopped` comes there if the thread has ended, or ends before its turn comes.
        """
        future: Future[T] = Future()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = job()
            except BaseException as error:
                future.set_exception(error)
                raise
            future.set_result(result)

        with self._wake:
            if self._closing or self._over:
                future.set_exception(Stopped("the node is stopping"))
                return future
            self._work.append(call)
            self._jobs.append(future)
            self._summon()
        return future

    def install(self, path: str) -> None:
        """On the apply thread: replace the machine's state by the snapshot in the file `path`, and tell the loop."""
        self._machine.install_snapshot(path)
        applied = self._machine.open()
        self._sessions = Sessions.decode(applied.notes)
        self.applied_index = self._machine_index = applied.index
        result = Result(applied.index, applied.index, nodes_changed=True, digest=self._machine.digest())
        result.open_sessions = self._sessions.open_sessions()
        members = self._sessions.members
        if members.founded:
            result.changes = [members.restored()]
        own = self._sessions.of_node(self._node)
        if own is None:
            result.overtaken = (0, 0, frozenset())
        else:
            result.opened = (own.id, own.nonce)
            result.overtaken = (own.id, own.done_below, frozenset(own.done))
        self._deliver(lambda: self._on_result(result))

    def close(self) -> None:
        """Finish what was submitted, close the machine, end the thread."""
        with self._wake:
            if self._closing:
                return
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            while (work := self._next()) is not None:
                self._do(work)
        except _Closing:
            pass
        except BaseException as error:
            self._deliver(lambda error=error: self._on_failure(error))  # type: ignore[misc]
        finally:
            self._machine.close()
            with self._wake:
                self._over = True
                for future in self._jobs:
                    if future.set_running_or_notify_cancel():
                        future.set_exception(Stopped("the node is stopping"))

    def work(self) -> bool:
        """Do the next thing there is to do, here and now; return whether there was one."""
        with self._wake:
            if not self._work:
                return False
        work = self._next()
        assert work is not None
        self._do(work)
        return True

    def _do(self, work: list[Batch] | Callable[[], None]) -> None:
        if isinstance(work, list):
            self._apply(work)
        else:
            work()

    def _next(self) -> list[Batch] | Callable[[], None] | None:
        """Wait for work: all batches that stand in a row, up to a bound, or one job; None to end."""
        with self._wake:
            while not self._work:
                if self._closing:
                    return None
                self._wake.wait()
            head = self._work.popleft()
            if not isinstance(head, Batch):
                self._jobs.popleft()
                return head
            batches = [head]
            size_bytes = head.size_bytes
            self._work_bytes -= size_bytes
            while self._work and isinstance(self._work[0], Batch):
                size_bytes += self._work[0].size_bytes
                if size_bytes > APPLY_BATCH_BYTES:
                    break
                self._work_bytes -= self._work[0].size_bytes
                batches.append(self._work.popleft())  # type: ignore[arg-type]
            return batches

    def _apply(self, batches: list[Batch]) -> None:
        assert batches[0].first == self.applied_index + 1, (batches[0].first, self.applied_index)
        result = Result(batches[0].first, batches[-1].last, batches=len(batches))
        items: list[Item] = []
        own: list[tuple[int, int, int]] = []  # position in items, session, seq
        for batch in batches:
            spans = batch.spans if batch.spans is not None else [self._read_entries(batch.first, batch.last)]
            for span in spans:
                self._admit(span, items, own, result)
        first = max(result.first, self._machine_index + 1)
        assert len(items) == max(0, result.last - first + 1), (len(items), first, result.last)
        answers = self._apply_when_there_is_room(items, self._sessions.encode()) if items else ()
        assert len(answers) == len(items)
        self.applied_index = result.last
        self._machine_index = max(self._machine_index, result.last)
        result.stamp = items[-1].stamp if items else 0
        result.mine = [(session, seq, answers[position]) for position, session, seq in own]
        if result.nodes_changed:
            result.open_sessions = self._sessions.open_sessions()
        if result.opened is not None and result.open_sessions.get(self._node) != result.opened[0]:
            result.opened = None  # and ended since: what is said in it counts no more
        result.digest = self._machine.digest()
        result.changes, self._sessions.changes = self._sessions.changes, []
        self._deliver(lambda: self._on_result(result))

    def _apply_when_there_is_room(self, items: list[Item], notes: bytes) -> Sequence[object]:
        """A full disk is waited out: this node keeps its vote and its log, and nobody else need wait for it."""
        waiting = False
        while True:
            try:
                answers = self._machine.apply(items, notes)
            except NoRoom as error:
                if not waiting:
                    log.warning("applying waits for room index=%d error=%s", items[0].index, error)
                waiting = self.waiting_for_room = True
                with self._wake:
                    if self._wake.wait_for(lambda: self._closing, NO_ROOM_RETRY_S):
                        raise _Closing from None
            else:
                self.waiting_for_room = False
                if waiting:
                    log.info("applying goes on index=%d", items[0].index)
                return answers

    def _admit(self, span: Span, items: list[Item], own: list[tuple[int, int, int]], result: Result) -> None:
        """Turn the records of `span`, which were verified when they entered the log, into items."""
        at, end = 0, len(span)
        while at < end:
            entries, at = fastlog.commands(span, at)
            self._admit_each(entries, items, own, result)

    def _admit_each(
        self,
        entries: Sequence[tuple[int, int, int, int, int, int, int, int, bytes]],
        items: list[Item],
        own: list[tuple[int, int, int]],
        result: Result,
    ) -> None:
        sessions, node, applied = self._sessions, self._node, self._machine_index
        for index, term, stamp, crc, kind, session, seq, done_below, data in entries:
            if index <= applied:
                continue  # The machine has it: the log lost it, and has it again.
            if session:
                item: Item = sessions.admit_command(index, term, stamp, crc, session, seq, done_below, data)
                if type(item) is Command and item.node == node:
                    own.append((len(items), session, seq))
            elif kind != fastlog.ENTRY_NORMAL:
                sessions.change_members(index, kind, data)
                item = Skipped(index, term, stamp, crc)
            else:
                item = sessions.admit(index, term, stamp, crc, data)
                self._noted(item, data, result)
            items.append(item)

    def _noted(self, item: Item, payload: bytes, result: Result) -> None:
        """Tell of what is no command."""
        match item:
            case NodeUp():
                result.nodes_changed = True
                if item.node == self._node:
                    result.opened = (item.index, envelope.decode_open(payload)[0])
            case NodeDown():
                result.nodes_changed = True
            case Skipped():
                if len(payload) == envelope.CANCEL_BYTES and payload[0] == envelope.CANCEL:
                    result.cancelled.append(envelope.decode_cancel(payload))
