"""One node of an interaction file: the core, storage in memory, and the queues of its two workers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random

from smtpraft.consensus import (
    Config,
    EntryRange,
    HardState,
    Message,
    MessageType,
    Output,
    RawNode,
    SnapshotMeta,
    decode_conf_change,
)
from smtpraft.fastlog import ENTRY_NORMAL, Log, decode_entries

from .changes import CommandError
from .formats import Entry, Parcel, Ready


@dataclass
class Storage:
    """What the append worker has stored: entries after a dummy."""

    dummy: Entry
    entries: list[Entry] = field(default_factory=list)
    hard_state: HardState = field(default_factory=HardState)
    snapshot_index: int = 0

    @property
    def first_index(self) -> int:
        return self.dummy.index + 1

    @property
    def last_index(self) -> int:
        return self.dummy.index + len(self.entries)

    def append(self, entries: Iterable[Entry]) -> None:
        """Store entries, instead of those that are there from their first on."""
        new = [entry for entry in entries if entry.index > self.dummy.index]
        if not new:
            return
        keep = new[0].index - self.first_index
        if keep > len(self.entries):
            raise AssertionError(f"entry {new[0].index} after {self.last_index}")
        self.entries[keep:] = new

    def install(self, snapshot: SnapshotMeta) -> None:
        """Start behind a snapshot."""
        if snapshot.index <= self.snapshot_index:
            raise CommandError("requested index is older than the existing snapshot")
        self.snapshot_index = snapshot.index
        self.dummy = Entry(snapshot.index, snapshot.term, ENTRY_NORMAL, b"")
        self.entries.clear()

    def compact(self, index: int) -> None:
        """Discard all up to `index`."""
        if index <= self.dummy.index:
            raise CommandError("requested index is unavailable due to compaction")
        if index > self.last_index:
            raise AssertionError(f"compact {index} is out of bound lastindex({self.last_index})")
        position = index - self.first_index
        self.dummy = self.entries[position]
        del self.entries[: position + 1]


class Machine:
    """A node."""

    def __init__(self, number: int, config: Config, snapshot: SnapshotMeta, log: Log, random: Random) -> None:
        self.number = number
        self.log = log
        self.storage = Storage(Entry(0, 0, ENTRY_NORMAL, b""))
        self.history = [snapshot]
        if snapshot.index:
            self.storage.install(snapshot)
            log.restore(snapshot.index, snapshot.term)
        self.async_storage = config.async_storage
        self.core = RawNode(
            config,
            log,
            snapshot.conf_state,
            HardState(),
            snapshot.index,
            random,
            snapshot_provider=lambda: self.history[-1],
        )
        self.append_queue: list[Parcel] = []
        self.apply_queue: list[Parcel] = []

    # Outputs.

    def ready(self) -> tuple[Output, Ready]:
        """Take the next output, with the entries it names."""
        output = self.core.ready()
        return output, Ready(
            output.soft_state,
            output.hard_state,
            output.read_states,
            self._entries(output.entries),
            output.snapshot,
            self._entries(output.committed),
            [self._parcel(message) for message in output.messages],
            output.must_sync,
        )

    def _entries(self, entries: EntryRange) -> tuple[Entry, ...]:
        if not entries:
            return ()
        return tuple(
            Entry(index, term, kind, data)
            for index, term, _, kind, data in self.log.entries(entries.first, entries.last)
        )

    def _parcel(self, message: Message) -> Parcel:
        if message.type is MessageType.PROP:
            return Parcel(message, tuple(Entry(0, 0, kind, data) for kind, data in message.payloads))
        if message.block:
            entries = tuple(
                Entry(index, term, kind, data) for index, term, _, kind, data in decode_entries(message.block)
            )
        else:
            entries = self._entries(message.entries)
            if message.type is MessageType.APP and entries:
                message.block = b"".join(self.log.spans(message.entries.first, message.entries.last))
        return Parcel(message, entries, [self._parcel(response) for response in message.responses])

    # Work.

    def store(self, hard_state: HardState | None, snapshot: SnapshotMeta | None, entries: Iterable[Entry]) -> None:
        """Do what the append worker does."""
        if hard_state is not None:
            self.storage.hard_state = hard_state
        if snapshot is not None:
            self.storage.install(snapshot)
        else:
            self.storage.append(entries)

    def apply(self, entries: Iterable[Entry]) -> None:
        """Do what the apply worker does: each entry makes a snapshot."""
        for entry in entries:
            last = self.history[-1]
            conf_state, data = last.conf_state, last.data
            if entry.kind == ENTRY_NORMAL:
                data += entry.data
            else:
                conf_state = self.core.apply_conf_change(decode_conf_change(entry.kind, entry.data))
            self.history.append(SnapshotMeta(entry.index, entry.term, conf_state, data))

    def append_one(self) -> Parcel:
        """Process the oldest message of the append queue; return it."""
        parcel = self.append_queue.pop(0)
        message = parcel.message
        hard_state = HardState(message.term, message.vote, message.commit)
        self.store(hard_state if hard_state != HardState() else None, message.snapshot, parcel.entries)
        return parcel

    def apply_one(self) -> Parcel:
        """Process the oldest message of the apply queue; return it."""
        parcel = self.apply_queue.pop(0)
        self.apply(parcel.entries)
        return parcel

    def compact(self, index: int) -> None:
        """Discard entries, of the storage and of the log that the core shares with it."""
        self.storage.compact(index)
        if self.log.prev_index < index <= self.log.last_index:
            self.core.raft.leaving(self.log.first_index, index)
            self.log.compact(index)
