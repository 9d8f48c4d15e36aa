"""Which part of the log a leader keeps for its members: what those that are there can still use.

A member that is away is not waited for; when it is back, a snapshot brings it up. How much may be kept at most is for
the compaction to say: a member that is there but never gets any further must not cost without bound either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from smtpraft.consensus import RawNode
from smtpraft.types import NodeId

PRESENT_S: Final = 10.0  # since its last word: a restart should not cost a snapshot


def retain_index(
    core: RawNode, last_word_at: Callable[[NodeId], float], now: float, prev_index: int, hold_index: int | None
) -> int:
    """Return the index up to which no member needs the leader's log, which begins after `prev_index`.

    `hold_index` is that of a snapshot on its way, None if there is none. Times are seconds, monotonic.
    """
    needed = []
    for member in core.members():
        if member.id != core.id and now - last_word_at(member.id) > PRESENT_S:
            continue
        if member.match_index >= prev_index:
            needed.append(member.match_index)
        elif member.pending_snapshot:
            needed.append(member.pending_snapshot)
    if hold_index is not None:
        needed.append(max(hold_index, prev_index))
    return min(needed, default=prev_index)
