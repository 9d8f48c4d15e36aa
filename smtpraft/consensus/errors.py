"""What the core refuses, and what makes it stop."""

from __future__ import annotations

from smtpraft.errors import Fatal, SmtpRaftError


class ProposalDropped(SmtpRaftError):
    """Nothing was proposed: no leader is known, leadership is moving, or too much is uncommitted. Try again later."""


class PeerNotFound(SmtpRaftError):
    """An answer of a node that is no member here. Harmless: it was removed, or we have not heard of it yet."""


class LocalMessage(SmtpRaftError):
    """A message of a type that never travels, from a peer. Nothing was done."""


class InvalidMessage(SmtpRaftError, ValueError):
    """A peer said what no correct peer says. Nothing was stored; its connection is of no more use."""


class InvalidConfChange(SmtpRaftError, ValueError):
    """This membership change cannot be applied to this membership. Nothing has changed; every node refuses it alike."""


class LogLost(Fatal):
    """Entries that this node had confirmed are no longer in its log: it must not vote or lead under this name again."""


class LogConflict(Fatal):
    """A leader contradicts an entry that is committed here: one of the two broke Raft's promises."""
