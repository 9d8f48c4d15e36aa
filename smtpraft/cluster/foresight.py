"""Answers before the machine has worked: what is certain as soon as an entry is committed.

Whoever proposes a command may say what the machine is going to answer to it, given the index of its entry (a queue id
is made of that index, for one). Once the entry is committed, only the log before it can still decide whether it counts
(`sessions.py`): the end of the session that it was said in, a withdrawal, an earlier copy. So this looks at every
committed entry, in order, on its way to the apply thread, and answers without waiting for that:

    committed   …  COMMAND 7/41   CANCEL 7/42   COMMAND 7/42   DOWN 7   COMMAND 7/43
                   foreseen: 250  counts no more: the machine will say  nothing of session 7 counts any more

The machine still applies the command, and its own answer is compared: a difference is a broken invariant, and stops the
node. What was not seen here (read from disk by the apply thread) is left to the machine, until it has caught up.
Loop thread only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from smtpraft import fastlog
from smtpraft.cluster import envelope
from smtpraft.cluster.proposals import Proposals
from smtpraft.types import NodeId


class Foresight:
    """Looks at what is committed for the proposals of one node."""

    def __init__(self, node: NodeId, proposals: Proposals) -> None:
        self._node = node
        self._proposals = proposals
        self._ended: dict[int, int] = {}  # session -> index of the DOWN that ended it, not applied yet
        self._reopened_at = 0  # of the last OPEN of this node that is not the session it knows
        self._blind_until = 0

    def committed(self, spans: Sequence[bytes | memoryview]) -> bool:
        """Look at committed entries, which follow on from those given last; they were verified before.

        Return whether there is more than commands in them: members, sessions, a leader's first entry. For what the
        machine makes of those, somebody else may wait.
        """
        proposals = self._proposals
        session = proposals.session
        counts = self._counts(session)
        more = False
        for span in spans:
            for index, number, payload in fastlog.proposed(span, session):
                if payload is None:
                    if counts:
                        proposals.foresee(number, index)
                    continue
                more = True
                if number == fastlog.ENTRY_NORMAL and payload and payload[0] in _OF_SESSIONS:
                    self._session_entry(payload[0], index, payload)
                    counts = self._counts(session)
        return more

    @property
    def blind(self) -> bool:
        """Is the machine alone to answer, until it has caught up with what was not seen here?"""
        return self._blind_until > 0

    def unseen(self, last: int) -> None:
        """Entries up to `last` are committed, and were not to be had here."""
        self._blind_until = last

    def applied(self, index: int) -> None:
        """The machine has applied the log up to `index`, and `Proposals` knows what that brought.

        Raises:
            Fatal: something was answered that was not applied.
        """
        self._proposals.applied(index)
        if self._ended:
            self._ended = {session: at for session, at in self._ended.items() if at > index}
        if index >= self._blind_until:
            self._blind_until = 0

    def _counts(self, session: int) -> bool:
        return not self._blind_until and session not in self._ended and session >= self._reopened_at

    def _session_entry(self, what: int, index: int, payload: bytes) -> None:
        try:
            if what == envelope.DOWN:
                self._ended[envelope.decode_down(payload)[0]] = index
            elif what == envelope.CANCEL:
                session, seq = envelope.decode_cancel(payload)
                if session == self._proposals.session:
                    self._proposals.withdrawn(seq)
            else:
                nonce, node = envelope.decode_open(payload)
                if node == self._node and nonce != self._proposals.nonce:
                    self._reopened_at = index
        except ValueError:
            pass  # no release writes it; the machine skips it


_OF_SESSIONS: Final = frozenset((envelope.OPEN, envelope.CANCEL, envelope.DOWN))
