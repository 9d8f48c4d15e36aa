"""What clients want of the cluster, and what they were told.

Every command carries a number of its own. So each that was answered with success, or called committed, was applied,
once; each that was refused never is (RFC 5321 §4.2.5), and none is refused that was called committed; a read sees every
write that was answered, or called committed, before it began; and the key-value map passes for one map, on which one
thing happens after the other (`linearizability`).
"""

from __future__ import annotations

from asyncio import Future
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from smtpraft.cluster import envelope
from smtpraft.cluster.machine import Command
from smtpraft.cluster.proposals import PATIENCE_S
from smtpraft.cluster.sessions import Sessions
from smtpraft.errors import NotReplicated, OutcomeUnknown, Stopped
from smtpraft.fastlog import ENTRY_NORMAL, decode_entries
from smtpraft.simulator.linearizability import (
    Delete,
    Get,
    KeyValueCall,
    KeyValueModel,
    Operation,
    Put,
    Undecided,
    check,
)
from smtpraft.simulator.operations import KEYS, Knowledge, Wanted, number_in, want
from smtpraft.simulator.timeline import MS, S
from smtpraft.simulator.violation import Violation
from smtpraft.spool.keyvalues import ABSENT, KeyResult
from smtpraft.spool.types import ORDINAL_BITS, MessageId, index_of
from smtpraft.types import NodeId

if TYPE_CHECKING:
    from smtpraft.simulator.host import Host
    from smtpraft.simulator.process import Process
    from smtpraft.simulator.world import World

DEADLINES_S: Final = (0.3, 1.0, 3.0)
PATIENCE_US: Final = round(PATIENCE_S * S)
STEPS_MAX: Final = 30_000


@dataclass(slots=True)
class Write:
    """One command of a client. `outcome`: open, done, refused or unknown.

    `certain_at`: when its client was told that it is committed, before the machine had applied it; and `certain_by`:
    what its node knew to be committed then. 0: it was not.
    """

    number: int
    node: NodeId
    wanted: Wanted
    called_at: int
    outcome: str = "open"
    answer: object = None
    certain_at: int = 0
    certain_by: int = 0


class Workload:
    """The clients of one cluster."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = world.random
        self.writes: list[Write] = []
        self.reads_done = 0
        self.undecided = 0
        self._known = Knowledge()
        self._history: list[Operation[KeyValueCall]] = []
        self._open: Counter[NodeId] = Counter()
        self._seen_index = 0
        """The highest index that a client has seen the effect of: later reads must see it too."""
        self._on: list[Host] = list(world.hosts.values())
        self._going = True
        self._last: Write | None = None
        self._rests_until = 0

    def start(self) -> None:
        """Begin to want things."""
        self._going = True
        self._last = None
        self._on = list(self.world.hosts.values())
        plan, timeline = self.world.plan, self.world.timeline
        timeline.after(self.random.randrange(plan.write_every_us), self._write_again)
        timeline.after(self.random.randrange(plan.read_every_us), self._read_again)

    def stop_on(self, hosts: list[Host]) -> None:
        """Want nothing more; what is asked from now on is asked of `hosts`."""
        self._going = False
        self._on = hosts

    def rest_until(self, moment_us: int) -> None:
        """Write nothing until then."""
        self._rests_until = moment_us

    @property
    def settled(self) -> bool:
        """Has everybody who asked a living node got an answer?"""
        if self._last is not None and self._last.outcome != "done":
            return False
        return not any(self._open[host.id] and self.world.is_member(host) for host in self._on)

    def open_text(self) -> str:
        """Return who still waits."""
        return f"waiting clients: {dict(self._open)}"

    def last_write(self, hosts: list[Host]) -> None:
        """Want one more thing, which must succeed; again and again until it does."""
        if self._last is None or self._last.outcome in ("refused", "unknown"):
            up = [host for host in hosts if host.process is not None and self.world.is_member(host)]
            if up:
                self._last = self.write(self.random.choice(up), 3.0)
        if self._last is None or self._last.outcome != "done":
            self.world.timeline.after(200 * MS, self.last_write, hosts)

    def last_read(self, host: Host) -> None:
        """Read at this node."""
        if host.process is not None:
            host.run(host.process, self._ask, host.process)

    # Writes.

    def _write_again(self) -> None:
        if not self._going:
            return
        self.world.timeline.after(self.random.randrange(2 * self.world.plan.write_every_us), self._write_again)
        host = self.random.choice(self._on)
        if host.process is not None and self.world.timeline.now >= self._rests_until:
            self.write(host, self.random.choice(DEADLINES_S))

    def write(self, host: Host, deadline_s: float) -> Write:
        """Let a client of this node's, which runs, ask for something."""
        assert host.process is not None
        number = len(self.writes)
        write = Write(number, host.id, want(number, self._known, self.random), self.world.timeline.now)
        self.writes.append(write)
        host.run(host.process, self._submit, host.process, write, deadline_s)
        return write

    def _submit(self, process: Process, write: Write, deadline_s: float) -> None:
        wanted, proposals = write.wanted, process.proposals
        done = partial(self._written, process, write)
        committed = partial(self._certain, process, write) if wanted.patient else None
        try:
            proposals.propose(wanted.command, done, process.now_s() + deadline_s, 1.0, wanted.foreseen, committed)
        except NotReplicated:
            write.outcome = "refused"
            return
        self._open[process.id] += 1
        if wanted.patient:
            process.after(PATIENCE_US, proposals.hurry, process.turn)
        else:
            process.turn(lazy=True)

    def _certain(self, process: Process, write: Write) -> None:
        """Its command is committed, and counts: whoever asks from now on, anywhere, must see what it did."""
        commit = process.core.commit_index
        if write.outcome != "open" or write.certain_by:
            before = f"{write.outcome}, certain by {write.certain_by}"
            raise Violation("Q8", f"{write.node} calls write {write.number} committed at {commit}; it was {before}")
        write.certain_at, write.certain_by = self.world.timeline.now, commit
        self._seen_index = max(self._seen_index, commit)
        self.world.invariants.answered_at(process, commit)
        self.world.mix(254, write.number, commit, len(self._known.messages))

    def _written(self, process: Process, write: Write, answer: object, error: Exception | None) -> None:
        self._open[write.node] -= 1
        if write.outcome != "open":
            raise Violation("Q8", f"{write.node} answers write {write.number} again, which was {write.outcome}")
        if write.certain_by and error is not None and not (isinstance(error, OutcomeUnknown) and process.forgets):
            raise Violation("Q8", f"{write.node} called write {write.number} committed, and then says {error!r}")
        match error:
            case None:
                write.outcome, write.answer = "done", answer
                # Its command is applied here, or committed: a read that begins now, anywhere, must see it.
                self._seen_index = max(self._seen_index, process.applier.applied_index)
                if isinstance(write.answer, str):
                    message = MessageId(write.answer)
                    self._known.messages.append(message)
                    self._seen_index = max(self._seen_index, index_of(message))
                    self.world.invariants.answered_at(process, index_of(message))
            case NotReplicated() | Stopped():
                write.outcome = "refused"
            case OutcomeUnknown():
                write.outcome = "unknown"
            case _:
                raise Violation("Q2", f"a client of {write.node} is told {error!r}")
        if write.wanted.key and write.outcome != "refused":
            self._changed(write)
        self.world.mix(255, write.number, len(write.outcome), len(self._known.messages))

    def _changed(self, write: Write) -> None:
        wanted, answer = write.wanted, write.answer
        assert answer is None or isinstance(answer, KeyResult), answer
        revision = None if answer is None else answer.revision
        done = answer is None or answer.done
        call: KeyValueCall
        if wanted.value is None:
            call = Delete(revision, wanted.expected, done)
        else:
            call = Put(wanted.value, revision, wanted.expected, done)
        returned_at = None if answer is None else write.certain_at or self.world.timeline.now
        if revision is not None:
            self._known.revisions[wanted.key] = ABSENT if wanted.value is None and done else revision
        self._history.append(Operation(wanted.key, call, write.called_at, returned_at, write.node))

    def ask_often(self, host: Host, duration_us: int) -> None:
        """Ask much of one node for a while: it may lead no longer, and not know it; and write at the others."""
        for _ in range(6):
            self.world.timeline.after(self.random.randrange(duration_us), self._ask_one, host)
            self.world.timeline.after(self.random.randrange(duration_us), self._write_elsewhere, host)

    def _ask_one(self, host: Host) -> None:
        if self._going and host.process is not None:
            host.run(host.process, self._ask, host.process)

    def _write_elsewhere(self, host: Host) -> None:
        others = [other for other in self._on if other is not host and other.process is not None]
        if self._going and others:
            self.write(self.random.choice(others), self.random.choice(DEADLINES_S))

    # Reads.

    def _read_again(self) -> None:
        if not self._going:
            return
        self.world.timeline.after(self.random.randrange(2 * self.world.plan.read_every_us), self._read_again)
        host = self.random.choice(self._on)
        if host.process is not None:
            host.run(host.process, self._ask, host.process)

    def _ask(self, process: Process) -> None:
        must_see, called_at = self._seen_index, self.world.timeline.now
        self._open[process.id] += 1
        future = process.reads.ask(process.loop)
        future.add_done_callback(lambda done: self._read(process, must_see, called_at, done))
        process.turn(lazy=True)

    def _read(self, process: Process, must_see: int, called_at: int, future: Future[int]) -> None:
        self._open[process.id] -= 1
        if future.exception() is not None:
            return
        seen = process.applier.applied_index
        if seen < must_see:
            raise Violation("S2", f"a read at {process.id} sees {seen}; {must_see} had been seen before it began")
        self._seen_index = max(self._seen_index, seen)
        self.reads_done += 1
        key = self.random.choice(KEYS)
        found = process.machine.reader.key(key)
        call = Get(found.value, found.revision) if found is not None else Get(None, ABSENT)
        self._history.append(Operation(key, call, called_at, self.world.timeline.now, process.id))

    # The end.

    def judge(self, hosts: list[Host]) -> None:
        """Compare what clients were told with what the log made of it, read from its beginning.

        Raises:
            Violation: Q1 (an answered write is not there), Q2 (a refused one is), Q7 (one is there twice), Q8 (one that
                was called committed is not there, or later), S2 (the map was no map), Q6 (a body is another one).
        """
        invariants = self.world.invariants
        applied: dict[int, int] = {}
        sessions = Sessions()
        for index in range(1, invariants.applied_index + 1):
            entry = invariants.entry(index)
            if entry.kind != ENTRY_NORMAL:
                continue
            item = sessions.admit(index, entry.mark.term, entry.stamp, entry.mark.crc, entry.payload)
            number = number_in(item.data) if isinstance(item, Command) else None
            if number is None:
                continue
            if number in applied:
                raise Violation("Q7", f"write {number} is applied at {applied[number]} and at {index}")
            applied[number] = index
        for write in self.writes:
            if number_in(write.wanted.command) is None:
                continue
            if write.outcome == "done" and write.number not in applied:
                raise Violation("Q1", f"write {write.number} was answered with {write.answer!r}, and is not there")
            if write.outcome == "refused" and write.number in applied:
                at = applied[write.number]
                raise Violation("Q2", f"write {write.number} was refused at {write.node}, and is applied at {at}")
            if write.certain_by and not 0 < applied.get(write.number, 0) <= write.certain_by:
                at = applied.get(write.number, 0)
                raise Violation("Q8", f"write {write.number} was certain by {write.certain_by}, and is applied at {at}")
        try:
            broken = check(KeyValueModel(), self._history, steps_max=STEPS_MAX)
        except Undecided:
            self.undecided += 1
        else:
            if broken is not None:
                raise Violation("S2", str(broken))
        for host in hosts:
            if host.process is not None:
                self._bodies(host.process)

    def _bodies(self, process: Process) -> None:
        """Q6: the body of every queued message can be read here, and is what was accepted."""
        for message in process.machine.reader.page(0, 1_000_000):
            for part in message.parts:
                index = part.number >> ORDINAL_BITS
                command = self.world.invariants.entry(index).payload[envelope.COMMAND_HEADER_BYTES :]
                expected = command[part.offset : part.offset + part.length]
                if index > process.wal.first_index - 1 and index > process.log.prev_index:
                    stored = decode_entries(process.wal.read(index, index, None))[0][4]
                    found = stored[envelope.COMMAND_HEADER_BYTES :][part.offset : part.offset + part.length]
                else:
                    found = process.machine.reader.bodies([part]).get(part.number, b"?")
                if found != expected:
                    raise Violation("Q6", f"{process.id} has not the body of {message.id}, from entry {index}")
