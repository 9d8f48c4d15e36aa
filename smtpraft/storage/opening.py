"""What is there when a log is opened: its segments, its spares, its promises, and what of it is sound."""

from __future__ import annotations

from dataclasses import dataclass

from smtpraft.fastlog import Log
from smtpraft.storage.batch import HardState
from smtpraft.storage.disk import Disk
from smtpraft.storage.errors import WalCorrupt
from smtpraft.storage.healing import put_aside, reconcile, renounce
from smtpraft.storage.promises import Promises
from smtpraft.storage.recovery import Replayed, replay, replay_sound_part
from smtpraft.storage.segment import parse_segment_name
from smtpraft.storage.spares import SparePool, has_size, is_spare_name, is_unfinished_name


@dataclass(frozen=True, slots=True)
class Found:
    """What is there, ready to go on with."""

    state: Replayed | None
    """None: there is nothing, and the log begins, perhaps anew behind what was compacted."""
    hard_state: HardState
    promises: Promises | None
    spares: SparePool
    damage: WalCorrupt | None
    """What was lost, and put aside, just now."""


def find(
    disk: Disk,
    directory: str,
    *,
    cluster_id: bytes,
    node_id: str,
    memory: Log,
    segment_bytes: int,
    cache_bytes: int,
    promises: str,
    heal: bool,
) -> Found:
    """Look through `directory`, which is made if need be. What the arguments mean and what is raised: `Wal.open`."""
    disk.make_directory(directory)
    disk.sync_directory(directory)  # The names seen next may be those of renames that were never synced.
    names = disk.list_directory(directory)
    segments = [name for name in names if parse_segment_name(name)]
    ready = [name for name in names if is_spare_name(name)]
    keeper = Promises.open(disk, promises) if promises else None
    promise = keeper.current if keeper is not None else None
    state, damage, hard_state = None, None, HardState()
    try:
        try:
            if ready and not segments:
                # The first segment comes before the first spare.
                raise WalCorrupt("all segments are missing, but their spares are here", directory, 0, 1, 1)
            if segments:
                state = replay(
                    disk,
                    directory,
                    segments,
                    cluster_id=cluster_id,
                    node_id=node_id,
                    memory=memory,
                    cache_bytes=cache_bytes,
                )
                hard_state = state.hard_state
            if keeper is not None:
                hard_state = reconcile(state, keeper, directory, names)
        except WalCorrupt as error:
            if not heal or keeper is None or promise is None:
                raise
            damage = error
            if state is not None:
                state.close()
            state = replay_sound_part(
                disk,
                directory,
                segments,
                promise.floor,
                cluster_id=cluster_id,
                node_id=node_id,
                memory=memory,
                cache_bytes=cache_bytes,
            )
            hard_state = renounce(keeper, state, promise)

        for name in filter(is_unfinished_name, names):
            disk.unlink(f"{directory}/{name}")
        usable = [name for name in ready if has_size(disk, f"{directory}/{name}", segment_bytes)]
        for name in set(ready).difference(usable):
            disk.unlink(f"{directory}/{name}")
        spares = SparePool(disk, directory, segment_bytes, usable)
        if damage is not None:
            put_aside(disk, directory, segments, state, spares)
    except BaseException:
        if state is not None:
            state.close()
        if keeper is not None:
            keeper.close()
        raise
    return Found(state, hard_state, keeper, spares, damage)
