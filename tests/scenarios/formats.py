"""How a scenario file writes entries, messages, outputs and progress."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from smtpraft.consensus import (
    APPEND_THREAD,
    APPLY_THREAD,
    ChangeSingle,
    ChangeType,
    ConfState,
    HardState,
    Message,
    MessageType,
    Progress,
    ProgressState,
    ReadState,
    Role,
    SnapshotMeta,
    SoftState,
    decode_conf_change,
)
from smtpraft.fastlog import ENTRY_CONF_CHANGE, ENTRY_CONF_CHANGE_V2, ENTRY_NORMAL
from smtpraft.types import NO_NODE, NodeId

KINDS: Final = {
    ENTRY_NORMAL: "EntryNormal",
    ENTRY_CONF_CHANGE: "EntryConfChange",
    ENTRY_CONF_CHANGE_V2: "EntryConfChangeV2",
}
ROLES: Final = {
    Role.FOLLOWER: "StateFollower",
    Role.CANDIDATE: "StateCandidate",
    Role.LEADER: "StateLeader",
    Role.PRE_CANDIDATE: "StatePreCandidate",
}
STATES: Final = {
    ProgressState.PROBE: "StateProbe",
    ProgressState.REPLICATE: "StateReplicate",
    ProgressState.SNAPSHOT: "StateSnapshot",
}
OPERATIONS: Final = {
    ChangeType.ADD_NODE: "v",
    ChangeType.ADD_LEARNER: "l",
    ChangeType.REMOVE_NODE: "r",
    ChangeType.UPDATE_NODE: "u",
}
MESSAGE_NAMES: Final = {
    kind: "Msg" + "".join(part.capitalize() for part in kind.name.split("_")) for kind in MessageType
}
MESSAGE_TYPES: Final = {name: kind for kind, name in MESSAGE_NAMES.items()}
_ESCAPES: Final = {'"': '\\"', "\\": "\\\\", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r"} | {
    "\t": "\\t",
    "\v": "\\v",
}


@dataclass(frozen=True)
class Entry:
    """One entry, with its payload."""

    index: int
    term: int
    kind: int
    data: bytes


@dataclass
class Parcel:
    """A message with the entries that it names."""

    message: Message
    entries: tuple[Entry, ...] = ()
    responses: list[Parcel] = field(default_factory=list)


@dataclass
class Ready:
    """An output with the entries that it names."""

    soft_state: SoftState | None
    hard_state: HardState | None
    read_states: Sequence[ReadState]
    entries: Sequence[Entry]
    snapshot: SnapshotMeta | None
    committed: Sequence[Entry]
    messages: Sequence[Parcel]
    must_sync: bool


def node_id(number: int) -> NodeId:
    """Return our id of the node that files call `number`."""
    return NodeId(str(number)) if number else NO_NODE


def number_of(node: NodeId) -> int:
    """Return the number of a node."""
    return int(node) if node else 0


def format_ready(ready: Ready) -> str:
    """Return a ready as files write it."""
    lines = []
    if ready.soft_state is not None:
        lines.append(f"Lead:{number_of(ready.soft_state.leader_id)} State:{ROLES[ready.soft_state.role]}")
    if ready.hard_state is not None:
        lines.append(_format_hard_state(ready.hard_state))
    if ready.read_states:
        states = (f"{{{state.index} [{' '.join(map(str, state.context))}]}}" for state in ready.read_states)
        lines.append(f"ReadStates [{' '.join(states)}]")
    if ready.entries:
        lines += ["Entries:", *map(format_entry, ready.entries)]
    if ready.snapshot is not None:
        lines.append(f"Snapshot {format_snapshot(ready.snapshot)}")
    if ready.committed:
        lines += ["CommittedEntries:", *map(format_entry, ready.committed)]
    if ready.messages:
        lines += ["Messages:", *map(format_message, ready.messages)]
    if not lines:
        return "<empty Ready>"
    return "\n".join([f"Ready MustSync={str(ready.must_sync).lower()}:", *lines])


def _format_hard_state(state: HardState) -> str:
    vote = f" Vote:{number_of(state.vote)}" if state.vote else ""
    return f"HardState Term:{state.term}{vote} Commit:{state.commit}"


def format_entry(entry: Entry) -> str:
    """Return an entry: term/index, type, payload."""
    head = f"{entry.term}/{entry.index} {KINDS[entry.kind]}"
    if entry.kind == ENTRY_NORMAL:
        return f"{head} {quote(entry.data)}"
    changes = decode_conf_change(entry.kind, entry.data).changes
    return " ".join([head, *map(format_operation, changes)])


def format_operation(change: ChangeSingle) -> str:
    """Return one operation of a membership change."""
    return f"{OPERATIONS[change.type]}{number_of(change.node)}"


def format_message(parcel: Parcel, *, responses: bool = True) -> str:
    """Return a message, without its responses if they are shown elsewhere."""
    message = parcel.message
    parts = [
        f"{_endpoint(message.sender)}->{_endpoint(message.to)} {MESSAGE_NAMES[message.type]}",
        f"Term:{message.term} Log:{message.log_term}/{message.index}",
    ]
    if message.reject:
        parts.append(f"Rejected (Hint: {message.reject_hint})")
    if message.commit:
        parts.append(f"Commit:{message.commit}")
    if message.vote:
        parts.append(f"Vote:{number_of(message.vote)}")
    if len(parcel.entries) == 1:
        parts.append(f"Entries:[{format_entry(parcel.entries[0])}]")
    elif parcel.entries:
        parts.append("Entries:[\n" + indent("\n".join(map(format_entry, parcel.entries))) + "\n]")
    text = " ".join(parts)
    if message.snapshot is not None:
        text += f"\n  Snapshot: {format_snapshot(message.snapshot)}"
    if responses and parcel.responses:
        text += " Responses:[\n" + indent("\n".join(map(format_message, parcel.responses))) + "\n]"
    return text


def _endpoint(node: NodeId) -> str:
    if node == APPEND_THREAD:
        return "AppendThread"
    if node == APPLY_THREAD:
        return "ApplyThread"
    return f"{number_of(node):x}" if node else "None"


def format_snapshot(snapshot: SnapshotMeta) -> str:
    """Return the metadata of a snapshot."""
    return f"Index:{snapshot.index} Term:{snapshot.term} ConfState:{_format_conf_state(snapshot.conf_state)}"


def _format_conf_state(state: ConfState) -> str:
    def numbers(nodes: Iterable[NodeId]) -> str:
        return f"[{' '.join(str(number_of(node)) for node in nodes)}]"

    return (
        f"Voters:{numbers(state.voters)} VotersOutgoing:{numbers(state.voters_outgoing)} "
        f"Learners:{numbers(state.learners)} LearnersNext:{numbers(state.learners_next)} "
        f"AutoLeave:{str(state.auto_leave).lower()}"
    )


def format_progress(progress: Progress) -> str:
    """Return what a leader knows of one member."""
    text = f"{STATES[progress.state]} match={progress.match_index} next={progress.next_index}"
    text += " learner" if progress.is_learner else ""
    text += " paused" if progress.paused else ""
    text += f" pendingSnap={progress.pending_snapshot}" if progress.pending_snapshot else ""
    text += "" if progress.recent_active else " inactive"
    if progress.inflights.count:
        text += f" inflight={progress.inflights.count}{'[full]' if progress.inflights.full else ''}"
    return text


def quote(data: bytes) -> str:
    """Return bytes as Go's %q writes a string."""
    quoted = []
    for character in data.decode("utf-8", "surrogateescape"):
        code = ord(character)
        if character in _ESCAPES:
            quoted.append(_ESCAPES[character])
        elif 0xDC80 <= code <= 0xDCFF:  # A byte that is no UTF-8.
            quoted.append(f"\\x{code - 0xDC00:02x}")
        elif code < 0x20 or code == 0x7F:
            quoted.append(f"\\x{code:02x}")
        elif character.isprintable():
            quoted.append(character)
        else:
            quoted.append(f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return '"' + "".join(quoted) + '"'


def indent(text: str) -> str:
    """Put two spaces before every line."""
    return "\n".join("  " + line for line in text.split("\n"))
