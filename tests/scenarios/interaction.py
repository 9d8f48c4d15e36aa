"""Runs interaction files: a cluster of cores, driven step by step; every output and every message is compared."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Final

from smtpraft.consensus import (
    APPEND_THREAD,
    APPLY_THREAD,
    ConfChangeV2,
    Config,
    ConfState,
    LocalMessage,
    Message,
    MessageType,
    PeerNotFound,
    ProposalDropped,
    Role,
    SnapshotMeta,
    Transition,
)
from smtpraft.fastlog import ENTRY_CONF_CHANGE, ENTRY_CONF_CHANGE_V2, Log

from .changes import CommandError, parse_bool, parse_changes
from .formats import (
    MESSAGE_TYPES,
    ROLES,
    Parcel,
    Ready,
    format_entry,
    format_message,
    format_progress,
    format_ready,
    indent,
    node_id,
    number_of,
)
from .grammar import Block, BrokenScript
from .machine import Machine

LEVELS: Final = ("DEBUG", "INFO", "WARN", "ERROR", "FATAL", "NONE")
THREADS: Final = {APPEND_THREAD, APPLY_THREAD}
NO_LIMIT: Final = 2**62
_LOG_LINE: Final = re.compile(r"^ *(DEBUG|INFO|WARN|ERROR|FATAL)( |$)")
TRANSITIONS: Final = {
    "auto": Transition.AUTO,
    "implicit": Transition.JOINT_IMPLICIT,
    "explicit": Transition.JOINT_EXPLICIT,
}


def significant(text: str) -> list[str]:
    """Return the lines that count: no log lines, and no lonely `ok`."""
    lines = [line for line in text.split("\n") if not _LOG_LINE.match(line)]
    return [] if lines in (["ok"], [""]) else lines


class InteractionRunner:
    """A cluster, empty at first."""

    def __init__(self, seed: int, new_log: Callable[[], Log]) -> None:
        self._seed = seed
        self._new_log = new_log
        self._machines: list[Machine] = []
        self._messages: list[Parcel] = []
        self._level = "DEBUG"
        self._lines: list[str] = []
        self._commands: dict[str, Callable[[Block], None]] = {
            "_breakpoint": lambda _: None,
            "add-nodes": self._add_nodes,
            "campaign": self._campaign,
            "compact": self._compact,
            "deliver-msgs": self._deliver_msgs,
            "forget-leader": self._forget_leader,
            "log-level": self._log_level,
            "process-append-thread": self._process_append_thread,
            "process-apply-thread": self._process_apply_thread,
            "process-ready": self._process_ready,
            "propose": self._propose,
            "propose-conf-change": self._propose_conf_change,
            "raft-log": self._raft_log,
            "raft-state": self._raft_state,
            "report-unreachable": self._report_unreachable,
            "send-snapshot": self._send_snapshot,
            "set-randomized-election-timeout": self._set_timeout,
            "stabilize": self._stabilize,
            "status": self._status,
            "tick-election": self._tick_election,
            "tick-heartbeat": self._tick_heartbeat,
            "transfer-leadership": self._transfer_leadership,
        }

    def run(self, block: Block) -> str:
        """Return what the command prints."""
        self._lines = []
        error = ""
        try:
            command = self._commands.get(block.command)
            if command is None:
                raise CommandError("unknown command")
            command(block)
        except CommandError as returned:
            error = str(returned)
        return "\n".join([*self._lines, error] if error else self._lines)

    # Helpers.

    def _print(self, text: str) -> None:
        if self._level != "NONE":
            self._lines.append(text)

    @contextmanager
    def _indented(self) -> Iterator[None]:
        outer, self._lines = self._lines, []
        try:
            yield
        finally:
            inner, self._lines = self._lines, outer
            self._lines += [indent(text) for text in inner]

    def _machine(self, text: str) -> Machine:
        number = int(text)
        if not 1 <= number <= len(self._machines):
            raise BrokenScript(f"there is no node {number}")
        return self._machines[number - 1]

    def _first(self, block: Block) -> Machine:
        return self._machine(block.arguments[0].key)

    def _selected(self, block: Block) -> list[Machine]:
        return [self._machine(text) for text in block.bare]

    # Nodes.

    def _add_nodes(self, block: Block) -> None:
        count = int(block.arguments[0].key)
        members: dict[str, list[int]] = {"voters": [], "learners": []}
        index = 0
        given = False
        settings: dict[str, bool] = {
            "async-storage-writes": False,
            "prevote": False,
            "checkquorum": False,
            "step-down-on-removal": False,
            "disable-conf-change-validation": False,
        }
        inflight, max_apply_bytes, lease_reads = 2**31 - 1, 0, False
        max_append_bytes = NO_LIMIT
        for argument in block.named:
            for value in argument.values:
                match argument.key:
                    case "voters" | "learners":
                        members[argument.key].append(int(value))
                        given = True
                    case "index":
                        index = int(value)
                        given = True
                    case "inflight":
                        inflight = int(value)
                    case "max-committed-size-per-ready":
                        max_apply_bytes = int(value)
                    case "max-append-bytes":  # Not in the reference's files, only in our own.
                        max_append_bytes = int(value)
                    case "read-only":
                        if value not in {"safe", "lease-based"}:
                            raise CommandError(f'invalid read-only option "{value}"')
                        lease_reads = value == "lease-based"
                    case key if key in settings:
                        settings[key] = parse_bool(value)
                    case _:
                        pass
        if given and index <= 1:
            raise CommandError("index must be specified as > 1 due to bootstrap")
        conf_state = ConfState(tuple(map(node_id, members["voters"])), tuple(map(node_id, members["learners"])))
        for _ in range(count):
            number = len(self._machines) + 1
            config = Config(
                id=node_id(number),
                election_ticks=3,
                heartbeat_ticks=1,
                max_append_bytes=max_append_bytes,
                max_inflight_messages=inflight,
                max_inflight_bytes=0,
                max_uncommitted_bytes=0,
                max_apply_bytes=max_apply_bytes,
                pre_vote=settings["prevote"],
                check_quorum=settings["checkquorum"],
                lease_reads=lease_reads,
                async_storage=settings["async-storage-writes"],
                step_down_on_removal=settings["step-down-on-removal"],
                disable_conf_change_validation=settings["disable-conf-change-validation"],
                as_reference=True,
            )
            snapshot = SnapshotMeta(index, 1 if given else 0, conf_state)
            random = Random(f"{self._seed}/{number}")
            self._machines.append(Machine(number, config, snapshot, self._new_log(), random))

    def _set_timeout(self, block: Block) -> None:
        timeout = int(block.option("timeout") or "0")
        if timeout <= 0:
            raise BrokenScript("timeout must be positive")
        self._first(block).core.raft.timeout_ticks = timeout

    def _compact(self, block: Block) -> None:
        self._first(block).compact(int(block.arguments[1].key))
        self._raft_log(block)

    # What happens to them.

    def _campaign(self, block: Block) -> None:
        self._first(block).core.campaign()

    def _tick_heartbeat(self, block: Block) -> None:
        self._first(block).core.tick()

    def _tick_election(self, block: Block) -> None:
        for _ in range(3):
            self._first(block).core.tick()

    def _forget_leader(self, block: Block) -> None:
        self._first(block).core.forget_leader()

    def _transfer_leadership(self, block: Block) -> None:
        source, target = block.option("from"), block.option("to")
        if not source or not target:
            raise BrokenScript("transfer-leadership takes from= and to=")
        self._machine(source).core.transfer_leader(node_id(int(target)))

    def _report_unreachable(self, block: Block) -> None:
        if len(block.bare) != 2:
            raise CommandError("must specify exactly two node indexes: node on which to report, and reported node")
        self._first(block).core.report_unreachable(node_id(int(block.bare[1])))

    def _propose(self, block: Block) -> None:
        if len(block.arguments) != 2 or block.arguments[1].has_values:
            raise BrokenScript("propose takes a node and one word")
        with _returned():
            self._first(block).core.propose([block.arguments[1].key.encode()])

    def _propose_conf_change(self, block: Block) -> None:
        v1, transition = False, Transition.AUTO
        for argument in block.arguments[1:]:
            for value in argument.values:
                if argument.key == "v1":
                    v1 = parse_bool(value)
                elif argument.key == "transition":
                    if value not in TRANSITIONS:
                        raise CommandError(f"unknown transition {value}")
                    transition = TRANSITIONS[value]
                else:
                    raise CommandError(f"unknown command {argument.key}")
        changes = parse_changes(block.input)
        if v1 and (len(changes) > 1 or transition is not Transition.AUTO):
            raise CommandError("v1 conf change can only have one operation and no transition")
        change = ConfChangeV2(changes, transition)
        with _returned():
            self._first(block).core.propose_conf_change(change, ENTRY_CONF_CHANGE if v1 else ENTRY_CONF_CHANGE_V2)

    # What they show.

    def _log_level(self, block: Block) -> None:
        self._set_level(block.arguments[0].key)

    def _set_level(self, level: str) -> None:
        if level.upper() not in LEVELS:
            raise CommandError(f"log levels must be either of [{' '.join(LEVELS)}]")
        self._level = level.upper()

    def _raft_log(self, block: Block) -> None:
        storage = self._first(block).storage
        if not storage.entries:
            self._print(f"log is empty: first index={storage.first_index}, last index={storage.last_index}")
        for entry in storage.entries:
            self._print(format_entry(entry))

    def _raft_state(self, _block: Block) -> None:
        for machine in self._machines:
            core = machine.core
            votes = core.id in core.raft.tracker.membership.voters
            self._print(
                f"{machine.number}: {ROLES[core.role]} ({'Voter' if votes else 'Non-Voter'}) "
                f"Term:{core.term} Lead:{number_of(core.leader_id)}"
            )

    def _status(self, block: Block) -> None:
        core = self._first(block).core
        if core.role is Role.LEADER:
            for node, progress in core.raft.tracker.progress.items():
                self._print(f"{number_of(node)}: {format_progress(progress)}")

    # Work.

    def _each(self, block: Block, title: str, work: Callable[[Machine], None]) -> None:
        machines = self._selected(block)
        for machine in machines:
            if len(machines) == 1:
                work(machine)
            else:
                self._step(machine, title, work)

    def _process_ready(self, block: Block) -> None:
        self._each(block, "handling Ready", self._handle_ready)

    def _process_append_thread(self, block: Block) -> None:
        self._each(block, "processing append thread", self._append_one)

    def _process_apply_thread(self, block: Block) -> None:
        self._each(block, "processing apply thread", self._apply_one)

    def _handle_ready(self, machine: Machine) -> None:
        output, ready = machine.ready()
        self._print(format_ready(ready))
        if not machine.async_storage:
            machine.store(ready.hard_state, ready.snapshot, ready.entries)
            machine.apply(ready.committed)
            self._messages += ready.messages
            machine.core.advance(output)
            return
        self._queue(machine, ready)

    def _queue(self, machine: Machine, ready: Ready) -> None:
        for parcel in ready.messages:
            if parcel.message.to == APPEND_THREAD:
                machine.append_queue.append(parcel)
            elif parcel.message.to == APPLY_THREAD:
                machine.apply_queue.append(parcel)
            else:
                self._messages.append(parcel)

    def _append_one(self, machine: Machine) -> None:
        if not machine.append_queue:
            self._print("no append work to perform")
            return
        self._print_processing(machine.append_queue[0])
        self._print_responses(machine.append_one())

    def _apply_one(self, machine: Machine) -> None:
        if not machine.apply_queue:
            self._print("no apply work to perform")
            return
        self._print_processing(machine.apply_queue[0])
        self._print_responses(machine.apply_one())

    def _print_processing(self, parcel: Parcel) -> None:
        self._print("Processing:")
        self._print(format_message(parcel, responses=False))

    def _print_responses(self, parcel: Parcel) -> None:
        self._print("Responses:")
        for response in parcel.responses:
            self._print(format_message(response))
            self._messages.append(response)

    # Messages.

    def _send_snapshot(self, block: Block) -> None:
        source, target = self._selected(block)
        message = Message(
            MessageType.SNAP,
            to=target.core.id,
            sender=source.core.id,
            term=source.core.term,
            snapshot=source.history[-1],
        )
        self._messages.append(Parcel(message))
        self._print(format_message(Parcel(message)))

    def _deliver_msgs(self, block: Block) -> None:
        kind: MessageType | None = None
        recipients: list[tuple[int, bool]] = []
        for argument in block.arguments:
            if not argument.has_values:
                recipients.append((int(argument.key), False))
            elif argument.key == "drop":
                recipients += [(int(value), True) for value in argument.values]
            elif argument.key == "type":
                if argument.value not in MESSAGE_TYPES:
                    raise BrokenScript(f"unknown message type {argument.value}")
                kind = MESSAGE_TYPES[argument.value]
        numbers = [number for number, _ in recipients]
        if len(set(numbers)) < len(numbers):
            raise BrokenScript("a recipient is named twice")
        handled = 0
        for number, drop in recipients:
            handled += self._deliver(number, kind, drop=drop)
        if not handled:
            self._print("no messages")

    def _waiting(self, number: int, kind: MessageType | None = None, *, drop: bool = False) -> list[Parcel]:
        to = node_id(number)
        return [
            parcel
            for parcel in self._messages
            if parcel.message.to == to
            and (kind is None or parcel.message.type is kind)
            and not (drop and _is_local(parcel.message))
        ]

    def _deliver(self, number: int, kind: MessageType | None = None, *, drop: bool = False) -> int:
        waiting = self._waiting(number, kind, drop=drop)
        taken = set(map(id, waiting))
        self._messages = [parcel for parcel in self._messages if id(parcel) not in taken]
        for parcel in waiting:
            self._print(f"{'dropped: ' if drop else ''}{format_message(parcel)}")
            if drop:
                continue
            try:
                self._machine(str(number)).core.step(parcel.message)
            except (ProposalDropped, PeerNotFound, LocalMessage) as error:
                self._print(_error_text(error))
        return len(waiting)

    # Until nothing happens.

    def _stabilize(self, block: Block) -> None:
        level = self._level
        for argument in block.named:
            if argument.key == "log-level":
                self._set_level(argument.value)
        try:
            machines = self._selected(block) or self._machines
            while self._round(machines):
                pass
        finally:
            self._level = level

    def _round(self, machines: Sequence[Machine]) -> bool:
        done = False
        for machine in machines:
            if machine.core.has_ready():
                done = True
                self._step(machine, "handling Ready", self._handle_ready)
        for machine in machines:
            if self._waiting(machine.number):
                done = True
                self._step(machine, "receiving messages", self._deliver_all)
        for machine in machines:
            if machine.append_queue:
                done = True
                self._step(machine, "processing append thread", self._drain_appends)
        for machine in machines:
            if machine.apply_queue:
                done = True
                self._step(machine, "processing apply thread", self._drain_applies)
        return done

    def _step(self, machine: Machine, title: str, work: Callable[[Machine], None]) -> None:
        self._print(f"> {machine.number} {title}")
        with self._indented():
            work(machine)

    def _deliver_all(self, machine: Machine) -> None:
        self._deliver(machine.number)

    def _drain_appends(self, machine: Machine) -> None:
        while machine.append_queue:
            self._append_one(machine)

    def _drain_applies(self, machine: Machine) -> None:
        while machine.apply_queue:
            self._apply_one(machine)


def _is_local(message: Message) -> bool:
    return message.sender == message.to or message.sender in THREADS or message.to in THREADS


def _error_text(error: Exception) -> str:
    match error:
        case ProposalDropped():
            return "raft proposal dropped"
        case PeerNotFound():
            return "raft: cannot step as peer not found"
        case LocalMessage():
            return "raft: cannot step raft local message"
    raise error


@contextmanager
def _returned() -> Iterator[None]:
    """Let what the core refuses be an error that the command returns."""
    try:
        yield
    except (ProposalDropped, PeerNotFound, LocalMessage) as error:
        raise CommandError(_error_text(error)) from error
