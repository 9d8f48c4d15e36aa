"""The replicated mail queue as a state machine of the cluster.

`apply` is one SQLite transaction: what the items do, how far we are, the machine's time, the rolling digest and the
cluster's notes change together or not at all. So the state after a restart is always that of a prefix of the log.

Everything but `counts`, `now_ms`, `digest_now` and `digest_at` is for the cluster's apply thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

import apsw

from smtpraft.cluster.machine import Applied, Command, Item, NodeDown, NodeUp, Skipped
from smtpraft.spool.checkpointer import Checkpointer
from smtpraft.spool.commands import NewerCommand
from smtpraft.spool.counters import decode_counters
from smtpraft.spool.digest import RollingDigest
from smtpraft.spool.errors import SpoolDamaged, SpoolFull, SpoolNewer
from smtpraft.spool.queue import Queue
from smtpraft.spool.reader import Reader
from smtpraft.spool.snapshot import group_parts, put_bodies, replace_database, write_copy
from smtpraft.spool.store import DAMAGE, Store
from smtpraft.spool.types import ORDINAL_BITS, Changes
from smtpraft.types import NodeId

log = logging.getLogger(__name__)

_KIND_SKIPPED: Final = 0
_KIND_COMMAND: Final = 1
_KIND_NODE_UP: Final = 2
_KIND_NODE_DOWN: Final = 3


class SpoolMachine:
    """The mail queue in the SQLite file at `path`, as node `node_id` sees it.

    Set `read_entry` before the node starts: it returns the command of a log entry, and may block. `monotonic` is for
    tests and the simulator; it decides nothing, and only tells `now_ms` how long ago the last stamp was applied.
    """

    def __init__(
        self,
        path: str,
        node_id: NodeId,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        background: bool = True,
    ) -> None:
        """`background=False`: what threads of its own would do is done when it comes up, by whoever calls."""
        self.node_id = node_id
        self.read_entry: Callable[[int], bytes] | None = None
        self.on_changes: Callable[[Changes], object] | None = None
        """Called on the apply thread after a batch is committed, if it changed something for this node."""
        self.on_damage: Callable[[SpoolDamaged], object] | None = None
        """Called, on the thread that read it, when something was read that is not what was written."""
        self.reader = Reader(path, self._tell_damage)
        """Reads what is committed, on a thread of its own."""
        self._path = path
        self._monotonic = monotonic
        self._store = Store(path)
        self._background = background
        self._checkpointer = Checkpointer(path, background=background)
        self._queue: Queue
        self._digest = RollingDigest(0, bytes(32), 0, bytes(32))
        self._applied_index = 0
        self._synced_index = 0
        self._synced_copies = 0  # copies of bodies in entries up to here are synced
        self._copied = True  # the last compaction found room for all it had to copy
        self._clock = (0, monotonic())  # stamp last applied, and when that was
        self._counters_json = b"{}"
        self._installed = False  # a snapshot is in place that nobody was told of

    def open(self) -> Applied:
        """Open or create the database; return how far it is applied.

        Raises:
            SpoolDamaged: it is damaged. After `put_aside` this may be called again.
            SpoolUnusable: it is not a spool.
            SpoolNewer: a newer version wrote it.
        """
        try:
            with self._damage_named():
                meta = self._store.open()
                needed = self._store.needed_from(meta.copied_index)
                self._restore()
                self.reader.open()
                self._checkpointer.open()
        except BaseException:
            self._checkpointer.close()
            self.reader.suspend()
            self._store.close()
            raise
        tell = self.on_changes
        if self._installed and tell is not None:
            tell(Changes(meta.applied_index, resync=True))
        self._installed = False
        log.info("spool open path=%s applied_index=%d counters=%s", self._path, self._applied_index, meta.counters)
        return Applied(meta.applied_index, meta.notes, meta.applied_index if needed is None else needed - 1)

    @contextmanager
    def _damage_named(self) -> Iterator[None]:
        try:
            yield
        except DAMAGE as error:
            raise SpoolDamaged(self._path, f"damaged: {error}") from error

    def _tell_damage(self, error: SpoolDamaged) -> None:
        if self.on_damage is not None:
            self.on_damage(error)

    def _restore(self) -> None:
        """Take everything in memory from the database: at start, and after a transaction was undone."""
        meta = self._store.meta()
        self._counters_json = meta.counters.encode()
        self._applied_index = meta.applied_index
        self._clock = (meta.stamp_ms, self._monotonic())
        self._digest = RollingDigest(meta.applied_index, meta.digest, meta.point_index, meta.point)
        counters = decode_counters(self._counters_json)
        self._queue = Queue(self._store, self.node_id, counters, meta.copied_index)

    def apply(self, items: Sequence[Item], notes: bytes) -> Sequence[object]:
        """Apply `items`, which follow the last applied one, in one transaction; return one result an item.

        A command's result: ACCEPT the message id, CHUNK its bytes, FORGET_UPLOAD a count, OUTCOMES a tuple of which
        counted, HOLD and its like (count, id to go on after), KEY_PUT and KEY_DELETE a `KeyResult`; or a `Refusal`.

        Raises:
            SpoolFull: no room; nothing was applied, the same items may be given again.
            SpoolNewer: a newer node proposed a command that this version does not know.
        """
        store = self._store
        if self._checkpointer.consider(store.wal_pages):
            store.checkpoint()
        store.begin()
        try:
            results, kinds, effects, stamp_ms = self._apply_each(items)
            self._queue.write()
            digest, points = self._digest.extended(items, kinds, effects)
            counters_json = self._queue.counters.encode()
            newest = points[-1] if points else self._digest.newest_point()
            applied_index = items[-1].index if items else self._applied_index
            store.set_meta(applied_index, stamp_ms, digest, newest, counters_json.decode(), notes)
            store.commit()
        except (apsw.FullError, apsw.IOError) as error:
            refused = isinstance(error, apsw.FullError) or store.refused(error)
            self._undo()
            if not refused:
                raise
            reason = error if isinstance(error, apsw.FullError) else "the file system is read-only"
            raise SpoolFull(f"{self._path}: {reason}") from error
        except NewerCommand as error:
            self._undo()
            raise SpoolNewer(self._path, f"{error}: upgrade this node") from error
        except DAMAGE as error:
            with suppress(apsw.Error):
                store.rollback()
            raise SpoolDamaged(self._path, f"damaged: {error}") from error
        except BaseException:
            self._undo()
            raise
        self._applied_index = applied_index
        self._digest.advance(applied_index, digest, points)
        self._counters_json = counters_json
        self._clock = (stamp_ms, self._monotonic())
        changes = self._queue.take_changes(applied_index)
        tell = self.on_changes
        if changes is not None and tell is not None:
            tell(changes)
        return results

    def _apply_each(self, items: Sequence[Item]) -> tuple[list[object], list[int], list[bytes], int]:
        """Apply items in memory; return their results, kinds and effects, and the machine's time after the last."""
        queue = self._queue
        results: list[object] = []
        kinds: list[int] = []
        effects: list[bytes] = []
        index, now_ms = self._applied_index, self._clock[0]
        for item in items:
            index += 1
            assert item.index == index, f"item {item.index} after {index - 1}"
            now_ms = max(now_ms, item.stamp)
            queue.now_ms = now_ms
            result: object = None
            effect = b""
            match item:
                case Command():
                    kind = _KIND_COMMAND
                    result, effect = queue.command(item)
                case NodeUp():
                    kind = _KIND_NODE_UP
                    result, effect = queue.node_up(item)
                case NodeDown():
                    kind = _KIND_NODE_DOWN
                    result, effect = queue.node_down(item)
                case Skipped():
                    kind = _KIND_SKIPPED
            results.append(result)
            kinds.append(kind)
            effects.append(effect)
        return results, kinds, effects, now_ms

    def _undo(self) -> None:
        self._store.rollback()
        self._restore()

    def checkpoint(self) -> int:
        """Make what was applied survive power loss; return the index up to which the log may be cut.

        On a full disk that is less than what was applied, and nothing else is wrong.
        """
        if (self._synced_index, self._synced_copies) != (self._applied_index, self._queue.copied_index):
            try:
                with self._damage_named():
                    self._sync()
            except apsw.FullError as error:
                log.warning("spool not synced: no room path=%s error=%s", self._path, error)
        return self._synced_index if self._copied else min(self._synced_index, self._synced_copies)

    def _sync(self) -> None:
        self._store.sync()
        self._synced_index, self._synced_copies = self._applied_index, self._queue.copied_index

    def before_compaction(self, to_index: int) -> None:
        """Copy the living bodies whose entries are not above `to_index` into the database, and sync the copies.

        Transactions of about 4 MiB: a crash between two of them repeats little. Entries copied before are not read
        again. If there is no room for all, `checkpoint` will say how far it went.
        """
        assert to_index <= self._applied_index, f"compaction to {to_index}, applied {self._applied_index}"
        try:
            if to_index > self._queue.copied_index:
                with self._damage_named():
                    self._copy_up_to(to_index)
            self._copied = True
        except apsw.FullError as error:
            self._copied = False
            log.warning("bodies not copied: no room path=%s error=%s", self._path, error)

    def _copy_up_to(self, to_index: int) -> None:
        parts = self._store.parts_between(self._queue.copied_index, to_index)
        at = 0
        copied_bytes = 0
        while at < len(parts):
            end, size = group_parts(parts, at)
            last_index = parts[end - 1].number >> ORDINAL_BITS
            with self._store.transaction():
                put_bodies(self._store, parts[at:end], self._reader_of_entries())
                self._store.set_copied(last_index)
            self._queue.copied_index = last_index
            at = end
            copied_bytes += size
        with self._store.transaction():
            self._store.set_copied(to_index)
        self._queue.copied_index = to_index
        self._sync()
        level = logging.INFO if parts else logging.DEBUG
        log.log(level, "bodies copied to_index=%d parts=%d bytes=%d", to_index, len(parts), copied_bytes)

    def _reader_of_entries(self) -> Callable[[int], bytes]:
        assert self.read_entry is not None, "read_entry must be set before the node starts"
        return self.read_entry

    def write_snapshot(self, path: str) -> Applied:
        """Write the state after the last applied index, with every living body, to the new file `path`.

        Beside the applying, on a thread of its own. The log must forget nothing meanwhile.

        Raises:
            SpoolFull: no room for it.
            SpoolDamaged: the database, or the copy of it, is not what was written.
            OSError: the disk, or SQLite, cannot do it now.
        """
        try:
            meta = write_copy(self._path, path, self._reader_of_entries(), gently=self._background)
        except DAMAGE as error:
            raise self.reader.damaged(error) from error
        except apsw.Error as error:  # the state itself is the apply thread's to judge
            raise OSError(f"{path}: {error}") from error
        return Applied(meta.applied_index, meta.notes)

    def install_snapshot(self, path: str) -> None:
        """Put the state in the file `path` in the place of this one; `open` follows. See `StateMachine`."""
        self._checkpointer.close()
        self.reader.suspend()
        self._store.close()
        replace_database(self._path, path)
        self._installed = True

    def digest(self) -> tuple[int, int]:
        """Return (index, first 8 bytes of the digest) of the newest multiple of 64 applied, or (0, 0)."""
        index, digest = self._digest.newest_point()
        return (index, int.from_bytes(digest[:8], "big")) if index else (0, 0)

    def digest_now(self) -> tuple[str, int]:
        """Return (digest in hex, index) as of the last applied item."""
        digest, index = self._digest.current
        return digest.hex(), index

    def digest_at(self, index: int) -> int | None:
        """Return the first 8 bytes of the digest at `index`, if it is one of the last 1,024 points since the start."""
        digest = self._digest.at(index)
        return None if digest is None else int.from_bytes(digest[:8], "big")

    def counts(self) -> dict[str, int]:
        """Return the counters as of the last applied batch; see `SpoolClient.counts`."""
        counters = decode_counters(self._counters_json)
        counts = {name: getattr(counters, name) for name in counters.__struct_fields__ if name != "owners"}
        counts["bytes"] = counts.pop("size_bytes")
        counts["messages"] = counters.queued + counters.deferred + counters.held
        counts["owned"] = counters.owners.get(self.node_id, 0)
        return counts

    def owners(self) -> dict[NodeId, int]:
        """Return how many messages each node owns, as of the last applied batch."""
        counters = decode_counters(self._counters_json)
        return {NodeId(node): count for node, count in counters.owners.items()}

    def now_ms(self) -> int:
        """Return the machine's time now: the last stamp applied and what has passed on this node since."""
        stamp_ms, at = self._clock
        return stamp_ms + int((self._monotonic() - at) * 1000)

    def close(self) -> None:
        """Release files and threads."""
        self._checkpointer.close()
        self.reader.close()
        self._store.close()
