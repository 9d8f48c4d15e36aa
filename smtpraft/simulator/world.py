"""One cluster, one seed, one history: first everything may break, then a majority is healed and must go on."""

from __future__ import annotations

import struct
import zlib
from asyncio import AbstractEventLoop
from collections import Counter, deque
from collections.abc import Sequence
from random import Random
from typing import Final, cast

from smtpraft.cluster import envelope
from smtpraft.consensus import ConfState, InvalidMessage, Message, Role
from smtpraft.fastlog import ENTRY_NORMAL
from smtpraft.simulator.faults import Faults
from smtpraft.simulator.futures import VirtualLoop
from smtpraft.simulator.host import Host
from smtpraft.simulator.invariants import Invariants
from smtpraft.simulator.network import Frame, Network
from smtpraft.simulator.plan import Plan
from smtpraft.simulator.process import Process
from smtpraft.simulator.records import Committed
from smtpraft.simulator.reference import Reference
from smtpraft.simulator.timeline import S, Timeline
from smtpraft.simulator.violation import Violation
from smtpraft.simulator.workload import Workload
from smtpraft.types import NodeId

TRACE_EVENTS: Final = 400
SPARE_NODES: Final = 3
"""Machines that may become members, on days on which members change."""
CONVERGE_S: Final = 20
"""Simulated seconds after which a healed majority must have converged; half of it is usually enough by far."""

_DOWN: Final = bytes([envelope.DOWN])
_MIX: Final = struct.Struct(">QBQQQ")


class World:
    """The nodes, the network, the clients, the faults, and the judges."""

    def __init__(self, plan: Plan, directory: str) -> None:
        self.plan = plan
        self.directory = directory
        self.random = Random(plan.seed)
        self.cluster_id = self.random.randbytes(16)
        self.timeline = Timeline()
        self.loop = cast(AbstractEventLoop, VirtualLoop())
        self.network = Network(self.timeline, self.random, plan, self._arrive)
        self.hosts: dict[NodeId, Host] = {}
        self.invariants = Invariants(self.hosts)
        self.reference = Reference(directory, self.invariants)
        self.calm = False
        """The second phase has begun: nothing new breaks."""
        self._history: list[bytes] = []
        """A checksum over the whole history: two runs of one seed have the same, or something is not determined."""
        self.trace: deque[tuple[int, str, str, str]] = deque(maxlen=TRACE_EVENTS)
        self.faults_seen: Counter[str] = Counter()
        self.elections = 0
        self.hand_overs = 0
        """Leaders that were asked to hand over in calm."""
        names = [NodeId(f"n{number}") for number in range(1, plan.nodes + 1)]
        conf_state = ConfState(voters=tuple(names))
        for number, name in enumerate(names):
            self.hosts[name] = Host(self, name, number, conf_state)
        if plan.has("membership"):
            for number in range(plan.nodes, plan.nodes + SPARE_NODES):
                name = NodeId(f"n{number + 1}")
                self.hosts[name] = Host(self, name, number, ConfState())
        self.founders = {name: self.hosts[name].member for name in names}
        """Which data directories the cluster was founded with."""
        self.workload = Workload(self)
        self.faults = Faults(self)

    # What happens.

    def run(self) -> None:
        """Live through the day, then see whether a majority recovers.

        Raises:
            Violation: a promise was broken.
        """
        core: list[Host] = []
        for _ in range(self.plan.rounds):
            self.calm = False
            self.faults.start()
            self.workload.start()
            self.timeline.run_until(self.timeline.now + self.plan.seconds * S // self.plan.rounds)
            core = self._converge()
            for host in core:
                if host.process is not None:
                    self.reference.compare(host.id, host.process.machine, host.applied)
        self.workload.judge(core)

    def close(self) -> None:
        """Let go of every file."""
        for host in self.hosts.values():
            host.spool.close()
            host.process = None
        self.reference.close()

    def _converge(self) -> list[Host]:
        """L1 to L6: a random majority is healed, the others are broken for good; then it must get on, and agree."""
        core = self.faults.heal_a_majority()
        self.calm = True
        self.workload.stop_on(core)
        begun = self.timeline.now
        if not self.timeline.run_until(begun + CONVERGE_S * S, stop=lambda: self._leads(core)):
            raise Violation("L1", f"no leader among {', '.join(host.id for host in core)} within {CONVERGE_S} s")
        self._hand_over_to_nobody(core)
        self.workload.last_write(core)
        begun = self.timeline.now
        if not self.timeline.run_until(begun + CONVERGE_S * S, stop=lambda: self._agree(core)):
            raise Violation("L4", f"no agreement within {CONVERGE_S} s: {self._states(core)}")
        self._hand_over(core)
        terms = max(host.process.core.term for host in core if host.process is not None)
        self.timeline.run_until(self.timeline.now + 3 * S)
        now = max(host.process.core.term for host in core if host.process is not None)
        if now != terms or not self._leads(core):
            raise Violation("L6", f"a healed majority goes from term {terms} to {now}: {self._states(core)}")
        return core

    def _hand_over_to_nobody(self, core: list[Host]) -> None:
        """Perhaps ask the leader to hand over to a node that is broken for good: that holds it up for a while only."""
        broken = [host for host in self.hosts.values() if host not in core and self.is_member(host)]
        if not self.plan.has("transfer") or not broken:
            return
        to = self.random.choice(broken).id
        for host in core:
            if host.process is not None and host.process.core.role is Role.LEADER:
                self.note(host.id, "transfer", f"{to}, which is broken")
                host.run(host.process, host.process.transfer, to)

    def _hand_over(self, core: list[Host]) -> None:
        """L2: leadership is handed over while nobody writes; a read is answered all the same."""
        leaders = [host for host in core if host.process is not None and host.process.core.role is Role.LEADER]
        to = self.random.choice([host for host in core if host.id in self.members().voters and not host.stranger])
        if leaders and leaders[0].process is not None:
            self.hand_overs += to is not leaders[0]
            leaders[0].run(leaders[0].process, leaders[0].process.transfer, to.id)
        self.timeline.run_until(self.timeline.now + 1 * S)
        self.workload.last_read(to)
        begun = self.timeline.now
        if not self.timeline.run_until(begun + CONVERGE_S * S, stop=lambda: self.workload.settled):
            raise Violation("L2", f"a read at {to.id} is not answered within {CONVERGE_S} s: {self._states(core)}")

    def members(self) -> ConfState:
        """Return who the members are, as far as any node has applied the log."""
        return max(self.hosts.values(), key=lambda host: host.conf_index).conf_state

    def is_member(self, host: Host) -> bool:
        """Does this node get entries?"""
        if host.stranger:
            return False
        state = self.members()
        return host.id in {*state.voters, *state.learners, *state.voters_outgoing}

    def _leads(self, core: list[Host]) -> bool:
        return any(host.process is not None and host.process.core.role is Role.LEADER for host in core)

    def _agree(self, core: list[Host]) -> bool:
        """Is everything committed, applied everywhere, and everybody answered?"""
        if not self.workload.settled:
            return False
        state = self.members()
        members = {*state.voters, *state.learners, *state.voters_outgoing}
        last = -1
        for host in core:
            if host.id not in members or host.stranger:
                continue
            process = host.process
            if process is None:
                return False
            index = process.applier.applied_index
            if index != process.log.last_index or (last >= 0 and index != last):
                return False
            last = index
        return self._leads(core)

    def _states(self, core: list[Host]) -> str:
        texts = []
        for host in core:
            process = host.process
            if process is None:
                texts.append(f"{host.id} is down")
                continue
            c = process.core
            texts.append(
                f"{host.id} {c.role.value} term {c.term} log {process.log.last_index} commit {c.commit_index} "
                f"applied {process.applier.applied_index}"
            )
        return "; ".join([*texts, self.workload.open_text()])

    def _arrive(self, sender: NodeId, to: NodeId, frame: Frame) -> None:
        host = self.hosts[to]
        process = host.process
        if process is not None:
            host.run(process, process.receive, sender, frame)

    # What is told.

    @property
    def digest(self) -> int:
        """The history's checksum: the same for the same seed, always."""
        return zlib.crc32(b"".join(self._history))

    def mix(self, number: int, *facts: int) -> None:
        """Make a moment part of the history's checksum."""
        self._history.append(_MIX.pack(self.timeline.now, number, *facts))

    def note(self, node: str, kind: str, text: str) -> None:
        """Remember a step for the trace, and mix it into the checksum."""
        self.trace.append((self.timeline.now, node, kind, text))
        self._history.append(f"{self.timeline.now} {node} {kind} {text}".encode())

    def fault(self, node: str, kind: str, text: str = "") -> None:
        """Something breaks, or heals."""
        self.faults_seen[kind] += 1
        self.note(node, "fault", f"{kind} {text}".rstrip())

    def led(self, process: Process) -> None:
        """A node has become leader."""
        self.elections += 1
        self.faults.led(process)

    def applying(self, process: Process, entries: Sequence[Committed]) -> None:
        """A node is about to apply these."""
        new = self.invariants.applied_index
        self.invariants.applying(process, entries)
        for entry in entries:
            if entry.at > new and entry.kind == ENTRY_NORMAL and entry.payload[:1] == _DOWN:
                self._down(envelope.decode_down(entry.payload)[0])

    def _down(self, session: int) -> None:
        """Q3: once a node is down for all, and others take its work over, its lease has run out."""
        for host in self.hosts.values():
            process = host.process
            if process is None or process.proposals.session != session:
                continue
            left = process.lease_expires_in_s()
            if left > 0:
                raise Violation("Q3", f"{host.id} is down for the others, and may work for {left:.3f} s more")
            self.note(host.id, "down", f"session {session}")

    def refused(self, process: Process, message: Message, error: Exception) -> None:
        """A node did not take a message in."""
        if isinstance(error, InvalidMessage):
            raise Violation("P1", f"{process.id} refuses {message.type.name} of {message.sender}: {error}")
        self.note(process.id, "refused", f"{message.type.name} of {message.sender}: {error}")

    def stopped(self, host: Host, error: BaseException) -> None:
        """A node stops by itself: with sound disks that is never right."""
        raise Violation("STOP", f"{host.id} stops: {type(error).__name__}: {error}") from error
