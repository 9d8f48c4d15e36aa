"""How a cluster begins: every founding node is there, none has ever taken part, and all of them know it of each other.

A node with an empty data directory cannot know whether its cluster has a history. If it voted as though there was
none, mail that the others had acknowledged with its predecessor's vote would be lost. So each fresh node tells every
other, again and again, that it is fresh, and whom it sees: the incarnation of every founding node's data directory. A
node is a founder once all have said that they are fresh and see exactly what it sees. It writes that down, durably, and
only then votes; the others' incarnations are the only ones that it will ever deal with under these names, until the log
says otherwise.

Why that is safe: say a cluster lives; a majority of it, E, has elected a leader. Each of E was a founder by then. Now a
member loses its disk and comes back with another incarnation, m. For any set with m in it to be founded, all its nodes
must say that they are fresh *and that they see m*: so after m was born, and therefore after E had ceased to be fresh.
So every node of E has lost its disk too. No clock is needed for that, nor that messages arrive in order or at all.

A founder answers those of its founding set that are still fresh with the set: who is in it under its own incarnation
has promised nothing yet and may take its place. That is what a crash in the middle needs, and a node that was slow.

No I/O and no clock here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from smtpraft.fastlog import CorruptFrame, encode_frame
from smtpraft.types import NodeId

FRAME_FOUNDING: Final = 32
"""One of the driver's own: `(incarnation, fresh, {node: incarnation})` as MessagePack, on the control connection."""


class _Word(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    incarnation: int
    fresh: bool
    sees: dict[str, int]


class Founding:
    """What one node knows of the founding. `founders` is empty while it is fresh."""

    def __init__(self, me: NodeId, incarnation: int, nodes: Iterable[NodeId], founders: Mapping[NodeId, int]) -> None:
        """`nodes`: all that found the cluster, this one among them or not."""
        self._me = me
        self._incarnation = incarnation
        self._nodes = frozenset(nodes) | {me}
        self.founders: dict[NodeId, int] = dict(founders)
        self._heard: dict[NodeId, _Word] = {}

    @property
    def missing(self) -> list[NodeId]:
        """Return the founding nodes that have not been heard of as fresh, or that lack something."""
        seen = self._seen()
        return sorted(
            node
            for node in self._nodes - {self._me}
            if node not in self._heard or not self._heard[node].fresh or self._heard[node].sees != seen
        )

    def heard_of(self, node: NodeId) -> bool:
        """Has `node` said anything?"""
        return node in self._heard

    def word(self) -> bytes:
        """Return the frame that tells the others."""
        word = _Word(self._incarnation, not self.founders, dict(self.founders or self._seen()))  # type: ignore[arg-type]
        return encode_frame(FRAME_FOUNDING, msgspec.msgpack.encode(word))

    def lost(self, node: NodeId) -> None:
        """`node` cannot be reached: what it said before may be old."""
        self._heard.pop(node, None)

    def hear(self, node: NodeId, head: bytes) -> bool:
        """Take in what `node` says; return whether it should be told our word at once.

        `founders` is set once this node may write them down: they all agree, or one of them has told of the set that
        this very incarnation belongs to.

        Raises:
            CorruptFrame: that is no such word.
        """
        try:
            word = msgspec.msgpack.decode(head, type=_Word)
        except msgspec.DecodeError as error:
            raise CorruptFrame(f"not a word on the founding: {error}") from None
        if self.founders:
            return word.fresh and self.founders.get(node) == word.incarnation
        if node not in self._nodes:
            return False
        before = self._heard.get(node)
        self._heard[node] = word
        if not word.fresh:
            if word.sees.get(self._me) == self._incarnation and word.sees.keys() == self._nodes:
                self.founders = {NodeId(name): incarnation for name, incarnation in word.sees.items()}
                return True
            return False
        seen = self._seen()
        if seen.keys() == self._nodes and not self.missing:
            self.founders = seen
            return True
        return before != word

    def found_alone(self) -> None:
        """There is nobody else to ask."""
        assert self._nodes == {self._me}
        self.founders = self._seen()

    def _seen(self) -> dict[NodeId, int]:
        seen = {self._me: self._incarnation}
        for node, word in self._heard.items():
            if word.fresh:
                seen[node] = word.incarnation
        return seen
