"""A message that another process of this node has encoded: the command as it will stand in the log."""

from __future__ import annotations

from collections.abc import Sequence

from smtpraft.errors import NotReplicated
from smtpraft.spool import commands
from smtpraft.spool.client import Replicator, Submitted, answering, fits_one_entry
from smtpraft.spool.commands import AcceptHeader
from smtpraft.spool.types import Envelope, id_of_entry


def encode_message(envelope: Envelope, content: Sequence[bytes]) -> bytes | None:
    """Return the command that queues a message, or None if it is too long for one entry of the log.

    Raises:
        ValueError: an address or name cannot be written in UTF-8, or there is no recipient.
    """
    return commands.encode_accept(envelope, content) if fits_one_entry(envelope, content) else None


def submit_encoded(node: Replicator, command: bytes, *, deadline_s: float, done: Submitted) -> None:
    """As `SpoolClient.submit`, with what `encode_message` returned. One that is no such command is not replicated."""
    try:
        problem = _problem(command)
    except ValueError as error:
        problem = str(error)
    if problem:
        done(None, NotReplicated(problem))
        return
    try:
        node.propose(command, answering(done), deadline_s=deadline_s, foreseen=id_of_entry)
    except Exception as error:
        done(None, error)


def _problem(command: bytes) -> str:
    """Return why the queue would not take a command, "" if it will.

    Raises:
        commands.NewerCommand: we do not know it.
    """
    decoded = commands.decode(command)
    if isinstance(decoded, commands.Refusal):
        return f"a command that cannot be read: {decoded.name}"
    _, header, _ = decoded
    if not isinstance(header, AcceptHeader) or header.upload or not header.recipients:
        return "a command that brings no whole message"
    return ""
