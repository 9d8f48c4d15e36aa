"""The machine as it should be: one spool that is given every applied entry once, in order, and never crashes.

D7: a node that comes back, or that is looked at, has exactly what this one had at the same index (S1: and so all nodes
are alike). It goes forward only when somebody is to be compared, so it costs little.
"""

from __future__ import annotations

import functools
import os
import zlib
from typing import TYPE_CHECKING, Final

import apsw

from smtpraft.cluster.machine import Item, Skipped
from smtpraft.cluster.sessions import Sessions
from smtpraft.fastlog import ENTRY_NORMAL
from smtpraft.simulator.spoolfile import close_as_it_is
from smtpraft.simulator.violation import Violation
from smtpraft.spool.machine import SpoolMachine
from smtpraft.types import NodeId

if TYPE_CHECKING:
    from smtpraft.simulator.invariants import Invariants

_LOCAL_TABLES: Final = frozenset({"bodies"})
_LOCAL_COLUMNS: Final = frozenset({"copied_index", "syncs", "copied_sum", "sum"})


class Reference:
    """The spool of nobody in particular."""

    def __init__(self, directory: str, invariants: Invariants) -> None:
        self._path = os.path.join(directory, "reference.db")
        self._machine = SpoolMachine(self._path, NodeId("reference"), monotonic=lambda: 0.0, background=False)
        self._machine.open()
        self._sessions = Sessions()
        self._invariants = invariants
        self._contents: dict[int, int] = {0: contents(self._machine)}
        self.index = 0

    def compare(self, node: str, machine: SpoolMachine, index: int) -> bool:
        """Check the spool of `machine`, which says that it has applied `index`; return whether it could be compared.

        Raises:
            Violation: it differs.
        """
        expected = self._at(index)
        if expected is None:
            return False
        if contents(machine) != expected:
            raise Violation("D7", f"{node}: its spool says that it is at {index}, but is not what {index} entries make")
        return True

    def _at(self, index: int) -> int | None:
        if index > self.index:
            items: list[Item] = []
            for at in range(self.index + 1, index + 1):
                entry = self._invariants.entry(at)
                (term, crc), stamp = entry.mark, entry.stamp
                if entry.kind == ENTRY_NORMAL:
                    items.append(self._sessions.admit(at, term, stamp, crc, entry.payload))
                else:
                    self._sessions.change_members(at, entry.kind, entry.payload)
                    items.append(Skipped(at, term, stamp, crc))
            self._sessions.changes.clear()
            self._machine.apply(items, self._sessions.encode())
            self.index = index
            self._contents[index] = contents(self._machine)
        return self._contents.get(index)

    def close(self) -> None:
        """Let go of the file."""
        close_as_it_is(self._machine)


def contents(machine: SpoolMachine) -> int:
    """Return a checksum of all that every node must have alike."""
    cursor = machine._store.cursor()
    checksum = 0
    schema = cursor.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'table' ORDER BY name").fetchall()
    for table, query in _queries(tuple(schema)):
        rows = cursor.execute(query).fetchall()
        checksum = zlib.crc32(repr((table, rows)).encode(), checksum)
    return checksum


@functools.lru_cache(maxsize=4)
def _queries(schema: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
    """Return the tables that every node has alike, and what to ask for their rows."""
    connection = apsw.Connection(":memory:")
    found = []
    for table, text in schema:
        if table in _LOCAL_TABLES:
            continue
        connection.execute(text)
        columns = [str(row[1]) for row in connection.execute(f"PRAGMA table_info({table})").fetchall()]
        chosen = ", ".join(column for column in columns if column not in _LOCAL_COLUMNS)
        found.append((table, f"SELECT {chosen} FROM {table} ORDER BY 1, 2"))  # noqa: S608
    connection.close()
    return found
