"""A replicated key-value map: a state machine of one's own on `smtpraft.cluster`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import sqlite3
import tempfile
from collections.abc import Sequence

from smtpraft.cluster import Applied, Command, Item, Node, NodeId, NodeOptions, Peer, derive_cluster_id, free_port


class KeyValue:
    """A command is `key=value`; its result is the value that stood there before, or None."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.db = sqlite3.connect(":memory:")  # until it is opened

    def open(self) -> Applied:
        self.db = sqlite3.connect(self.path, check_same_thread=False)
        self.db.executescript(
            "PRAGMA journal_mode=WAL; CREATE TABLE IF NOT EXISTS kv(k PRIMARY KEY, v);"
            "CREATE TABLE IF NOT EXISTS applied(one PRIMARY KEY, i, notes)"
        )
        return Applied(*(self.db.execute("SELECT i, notes FROM applied").fetchone() or (0, b"")))

    def apply(self, items: Sequence[Item], notes: bytes) -> Sequence[object]:
        results: list[object] = []
        with self.db:  # one transaction: the state, how far it is, and the cluster's notes
            for item in items:
                if not isinstance(item, Command):
                    results.append(None)
                    continue
                key, _, value = item.data.decode().partition("=")
                old = self.db.execute("SELECT v FROM kv WHERE k=?", (key,)).fetchone()
                self.db.execute("INSERT OR REPLACE INTO kv VALUES(?, ?)", (key, value))
                results.append(old[0] if old else None)
            self.db.execute("INSERT OR REPLACE INTO applied VALUES(1, ?, ?)", (items[-1].index, notes))
        return results

    def get(self, key: str) -> object:
        row = self.db.execute("SELECT v FROM kv WHERE k=?", (key,)).fetchone()
        return row[0] if row else None

    def checkpoint(self) -> int:
        self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        row = self.db.execute("SELECT i FROM applied").fetchone()
        return int(row[0]) if row else 0

    def before_compaction(self, to_index: int) -> None: ...  # nothing of ours is only in the log
    def write_snapshot(self, path: str) -> Applied:  # beside `apply`, on another thread: so on another connection
        with contextlib.closing(sqlite3.connect(self.path)) as db:
            db.execute("VACUUM INTO ?", (path,))
        with contextlib.closing(sqlite3.connect(path)) as copy:
            return Applied(*copy.execute("SELECT i, notes FROM applied").fetchone())

    def install_snapshot(self, path: str) -> None:
        self.close()
        for old in (self.path + "-wal", self.path + "-shm"):
            pathlib.Path(old).unlink(missing_ok=True)  # or they would be taken for the new file's
        os.replace(path, self.path)
        folder = os.open(os.path.dirname(self.path), os.O_RDONLY)
        os.fsync(folder)  # a new name is only safe once its folder is synced
        os.close(folder)

    def digest(self) -> tuple[int, int]:
        return (0, 0)  # no digests: nodes are not compared

    def digest_at(self, index: int) -> int | None:
        return None

    def close(self) -> None:
        self.db.close()


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        peers = [Peer(NodeId(f"n{i}"), "127.0.0.1", free_port()) for i in (1, 2, 3)]
        cluster_id = derive_cluster_id("example", [peer.id for peer in peers])
        machines = [KeyValue(f"{folder}/{peer.id}.db") for peer in peers]
        nodes = [
            Node(
                NodeOptions(
                    peer.id, f"{folder}/{peer.id}", cluster_id, (peer.host, peer.port), tuple(set(peers) - {peer})
                ),
                machine,
            )
            for peer, machine in zip(peers, machines, strict=True)
        ]
        await asyncio.gather(*(node.start() for node in nodes))
        await nodes[0].replicate(b"colour=blue")  # any node will do
        print("it was", await nodes[1].replicate(b"colour=green"))
        await nodes[2].read_index()  # linearizable: node 3 knows by now
        print("it is", machines[2].get("colour"))
        await asyncio.gather(*(node.stop() for node in nodes))


if __name__ == "__main__":
    asyncio.run(main())
