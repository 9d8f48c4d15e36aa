"""Names that every room shares: node ids and their order."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NewType

NodeId = NewType("NodeId", str)
"""The name of a node, `[A-Za-z0-9._-]{1,64}`, unique in the cluster."""

NO_NODE: Final = NodeId("")
"""Nobody: no leader known, no vote given."""

_NODE_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DIGITS: Final = re.compile(r"(\d+)")


def parse_node_id(text: str) -> NodeId:
    """Return `text` as a node id.

    Raises:
        ValueError: it is empty, too long or holds a character that a file name or a log line should not.
    """
    if not _NODE_ID.fullmatch(text):
        raise ValueError(f"{text!r} is no node id: 1 to 64 letters, digits, dots, dashes or underscores")
    return NodeId(text)


@lru_cache(maxsize=1024)  # The names of a cluster's nodes are few, and are put in order often.
def node_order(node: NodeId) -> tuple[tuple[int, str], ...]:
    """Return the sort key of a node id: digit runs compare as numbers, so `node-10` comes after `node-2`."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in _DIGITS.split(node) if part)
