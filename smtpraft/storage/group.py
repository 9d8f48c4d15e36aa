"""Group commit: what was submitted one by one and goes to the disk as one batch. No thread, no clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from smtpraft.storage.batch import HardState
from smtpraft.storage.disk import Buffer
from smtpraft.storage.wal import Wal

Done = Callable[[], None]


class Submission(NamedTuple):
    """Entries and hard state to be written, as `Wal.write` takes them; `done` is to be called when they are."""

    spans: Sequence[Buffer]
    first_index: int
    last_index: int
    size_bytes: int
    hard_state: HardState | None
    sync: bool
    done: Done
    since: float
    job: Done | None = None
    """Work to be done in its place in the order, alone, instead of a write."""


def gather(waiting: Iterable[Submission], batch_bytes_max: int) -> list[Submission]:
    """Return what can go out as one batch: the first of those that wait, and what continues it."""
    group: list[Submission] = []
    last_index = size_bytes = 0
    for item in waiting:
        if item.job is not None:
            return group or [item]
        if item.spans:
            if last_index and item.first_index != last_index + 1:
                break  # A truncation, which begins a batch.
            if group and size_bytes + item.size_bytes > batch_bytes_max:
                break
            last_index = item.last_index
            size_bytes += item.size_bytes
        group.append(item)
    return group


def write_group(wal: Wal, group: Sequence[Submission]) -> None:
    """Write a group as one batch, and sync it if one of its members wants that; or do its one job. All of it is done
    on return.

    Raises:
        WalFull, WalFailed, Stopped: as `Wal.write`.
    """
    if group[0].job is not None:
        group[0].job()
        return
    spans: list[Buffer] = []
    first_index = last_index = 0
    hard_state = None
    sync = False
    for item in group:
        if item.spans:
            spans += item.spans
            first_index = first_index or item.first_index
            last_index = item.last_index
        hard_state = item.hard_state or hard_state
        sync = sync or item.sync
    if spans or hard_state is not None or sync:  # Else only the order was wanted.
        wal.write(spans, first_index, last_index, hard_state, sync)
