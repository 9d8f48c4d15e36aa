"""The family of errors that smtpraft raises: caught by type, carrying facts rather than prose."""

from __future__ import annotations


class SmtpRaftError(Exception):
    """Base of every error that smtpraft raises on purpose."""


class NotReplicated(SmtpRaftError):
    """The command was refused, withdrawn or cancelled: it is not applied and never will be."""


class OutcomeUnknown(SmtpRaftError):
    """The command was handed to the cluster but no majority answered in time; it may still be applied."""


class Stopped(SmtpRaftError):
    """The node is stopping or has stopped; nothing was handed to the cluster."""


class Removed(SmtpRaftError):
    """This node is no member of its cluster any more, and will not be with this data directory."""


class Fatal(SmtpRaftError):
    """The node must not go on: a failed sync, a diverged state, a broken invariant. A node that stops loses nothing."""


class NewerFormat(Fatal):
    """A newer release wrote what this one was to read. Nothing of it was changed; the node needs upgrading."""
