"""What clients want of the cluster, and what they were told: mail accepted, results recorded, linearizable reads.

Every command carries a number of its own. So each that was answered with success was applied, once; each that was
refused never is (RFC 5321 §4.2.5); and a read sees every write that was answered before it began.
"""

from __future__ import annotations

from asyncio import Future
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from smtpraft.cluster.machine import Command
from smtpraft.cluster.sessions import Sessions
from smtpraft.errors import NotReplicated, OutcomeUnknown, Stopped
from smtpraft.fastlog import ENTRY_NORMAL
from smtpraft.simulator.timeline import MS
from smtpraft.simulator.violation import Violation
from smtpraft.spool import commands
from smtpraft.spool.types import Envelope, MessageId, index_of
from smtpraft.types import NodeId

if TYPE_CHECKING:
    from smtpraft.simulator.host import Host
    from smtpraft.simulator.process import Process
    from smtpraft.simulator.world import World

DEADLINES_S: Final = (0.3, 1.0, 3.0)


@dataclass(slots=True)
class Write:
    """One command of a client. `outcome`: open, done, refused or unknown."""

    number: int
    node: NodeId
    outcome: str = "open"
    index: int = 0


class Workload:
    """The clients of one cluster."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = world.random
        self.writes: list[Write] = []
        self.reads_done = 0
        self._open: Counter[NodeId] = Counter()
        self._acknowledged = 0
        """The highest index of a write that its client knows of, or of a read: later reads must see it."""
        self._on: list[Host] = list(world.hosts.values())
        self._going = True
        self._last: Write | None = None

    def start(self) -> None:
        """Begin to want things."""
        plan, timeline = self.world.plan, self.world.timeline
        timeline.after(self.random.randrange(plan.write_every_us), self._write_again)
        timeline.after(self.random.randrange(plan.read_every_us), self._read_again)

    def stop_on(self, hosts: list[Host]) -> None:
        """Want nothing more; what is asked from now on is asked of `hosts`."""
        self._going = False
        self._on = hosts

    @property
    def settled(self) -> bool:
        """Has everybody who asked a living node got an answer?"""
        waiting = sum(self._open[host.id] for host in self._on)
        return not waiting and (self._last is None or self._last.outcome == "done")

    def open_text(self) -> str:
        """Return who still waits."""
        return f"waiting clients: {dict(self._open)}"

    def last_write(self, hosts: list[Host]) -> None:
        """Want one more thing, which must succeed; again and again until it does."""
        if self._last is None or self._last.outcome in ("refused", "unknown"):
            up = [host for host in hosts if host.process is not None]
            if up:
                self._last = self.write(self.random.choice(up), 3.0)
        if self._last is None or self._last.outcome != "done":
            self.world.timeline.after(200 * MS, self.last_write, hosts)

    # Writes.

    def _write_again(self) -> None:
        if not self._going:
            return
        self.world.timeline.after(self.random.randrange(2 * self.world.plan.write_every_us), self._write_again)
        host = self.random.choice(self._on)
        if host.process is not None:
            self.write(host, self.random.choice(DEADLINES_S))

    def write(self, host: Host, deadline_s: float) -> Write:
        """Let a client of this node's, which runs, ask for something."""
        assert host.process is not None
        write = Write(len(self.writes), host.id)
        self.writes.append(write)
        host.run(host.process, self._submit, host.process, write, deadline_s)
        return write

    def _submit(self, process: Process, write: Write, deadline_s: float) -> None:
        command = commands.encode_accept(
            Envelope("a@example.org", ("b@example.net",)), [b"%d %s" % (write.number, b"." * (write.number % 400))]
        )
        try:
            future = process.proposals.submit(command, process.loop, process.now_s() + deadline_s, 1.0)
        except NotReplicated:
            write.outcome = "refused"
            return
        self._open[process.id] += 1
        future.add_done_callback(lambda done: self._written(write, done))
        process.turn(lazy=True)

    def _written(self, write: Write, future: Future[object]) -> None:
        self._open[write.node] -= 1
        error = future.exception()
        match error:
            case None:
                answer = future.result()
                assert isinstance(answer, str), answer
                write.outcome, write.index = "done", index_of(MessageId(answer))
                self._acknowledged = max(self._acknowledged, write.index)
            case NotReplicated() | Stopped():
                write.outcome = "refused"
            case OutcomeUnknown():
                write.outcome = "unknown"
            case _:
                raise Violation("Q2", f"a client of {write.node} is told {error!r}")
        self.world.mix(255, write.number, write.index, len(write.outcome))

    # Reads.

    def _read_again(self) -> None:
        if not self._going:
            return
        self.world.timeline.after(self.random.randrange(2 * self.world.plan.read_every_us), self._read_again)
        host = self.random.choice(self._on)
        if host.process is not None:
            host.run(host.process, self._ask, host, host.process)

    def _ask(self, host: Host, process: Process) -> None:
        must_see = self._acknowledged
        self._open[host.id] += 1
        future = process.reads.ask(process.loop)
        future.add_done_callback(lambda done: self._read(host.id, must_see, done))
        process.turn(lazy=True)

    def _read(self, node: NodeId, must_see: int, future: Future[int]) -> None:
        self._open[node] -= 1
        if future.exception() is not None:
            return
        process = self.world.hosts[node].process
        assert process is not None
        seen = process.applier.applied_index
        if seen < must_see:
            raise Violation("S2", f"a read at {node} sees {seen}, but {must_see} was answered before it began")
        self._acknowledged = max(self._acknowledged, seen)
        self.reads_done += 1

    def judge(self) -> None:
        """Compare what clients were told with what the log made of it, read from its beginning.

        Raises:
            Violation: Q1 (an answered write is not there), Q2 (a refused one is), Q7 (one is there twice).
        """
        applied: dict[int, int] = {}
        sessions = Sessions()
        for index in range(1, self.world.invariants.applied_index + 1):
            (term, crc), payload, kind = self.world.invariants.entry(index)
            item = sessions.admit(index, term, 0, crc, payload) if kind == ENTRY_NORMAL else None
            if not isinstance(item, Command):
                continue
            number = number_in(item.data)
            if number in applied:
                raise Violation("Q7", f"write {number} is applied at {applied[number]} and at {index}")
            applied[number] = index
        for write in self.writes:
            index = applied.get(write.number, 0)
            if write.outcome == "done" and write.index != index:
                raise Violation("Q1", f"write {write.number} was answered with {write.index}, it is at {index}")
            if write.outcome == "refused" and index:
                raise Violation("Q2", f"write {write.number} was refused at {write.node}, and is applied at {index}")


def number_in(command: bytes) -> int:
    """Return which write a command is: its body begins with the number."""
    decoded = commands.decode(command)
    assert not isinstance(decoded, commands.Refusal), decoded
    body = command[decoded[2] :]
    return int(body.split(b" ", 1)[0])
