"""What a node's queue holds, row for row, as it stands on its disk: the same on all nodes at the same index.

The digest that nodes compare says that they did the same; this says that it came to the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import apsw

from smtpraft.cli.demo.nodes import DemoNode

# By schema.sql: all tables but `bodies`, and of `meta` all but its last two columns.
_META: Final = "applied_index, stamp_ms, hex(digest), point_index, hex(point), counters, hex(notes)"
_TABLES: Final = {
    "messages": "id",
    "recipients": "message, ordinal",
    "chunks": "entry",
    "nodes": "node",
    "history": "slot",
}

Rows = list[tuple[object, ...]]


def read_state(node: DemoNode) -> dict[str, Rows]:
    """Return the rows of `node`'s queue, in one transaction; the node may go on."""
    path: Path = node.directory / "data" / "spool" / "queue.db"
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        cursor = connection.cursor()
        cursor.execute("BEGIN")
        rows = {"meta": list(cursor.execute(f"SELECT {_META} FROM meta"))}  # noqa: S608
        for table, order in _TABLES.items():
            rows[table] = list(cursor.execute(f"SELECT * FROM {table} ORDER BY {order}"))  # noqa: S608
        return rows
    finally:
        connection.close()


def at_one_index(states: Sequence[dict[str, Rows]]) -> bool:
    """Can they be compared?"""
    return len({state["meta"][0][0] for state in states}) == 1


def difference(nodes: Sequence[DemoNode], states: Sequence[dict[str, Rows]]) -> str:
    """Return the first row in which two states differ, "" if there is none."""
    for node, state in zip(nodes[1:], states[1:], strict=True):
        for table, rows in states[0].items():
            if rows != state[table]:
                pairs = zip(rows, state[table], strict=False)
                first = next((pair for pair in pairs if pair[0] != pair[1]), (len(rows), len(state[table])))
                return f"{table} of {nodes[0].id} and {node.id}: {first[0]} and {first[1]}"
    return ""
