"""A queued message as the machine works with it, and what the results of an attempt do to it. No SQL, no clock."""

from __future__ import annotations

import msgspec

from smtpraft.spool.commands import (
    FLAG_8BITMIME,
    FLAG_BOUNCE,
    FLAG_SMTPUTF8,
    STATES,
    AcceptHeader,
    OutcomeHeader,
    message_flags,
)
from smtpraft.spool.types import (
    ORDINAL_BITS,
    BodyPart,
    MessageInfo,
    Recipient,
    RecipientState,
    id_of_number,
)
from smtpraft.types import NodeId


class Message(msgspec.Struct, gc=False):
    """The fields up to `auth` are the columns of table `messages`, in their order."""

    number: int
    owner: NodeId
    epoch: int
    held: int
    due_ms: int
    """Machine time of the earliest next attempt; 0 = some recipient may be tried at once."""
    flags: int
    accepted_ms: int
    size_bytes: int
    body_offset: int
    body_bytes: int
    accepted_by: NodeId
    sender: str
    client_host: str
    helo: str
    auth: str
    recipients: list[Recipient]
    open_count: int
    """How many of them are not final."""
    chunks: tuple[BodyPart, ...] = ()
    stored: bool = False
    """The database has it (perhaps as it was before this batch)."""

    def info(self) -> MessageInfo:
        """Return the message as the users of the queue see it."""
        number = self.number
        flags = self.flags
        return MessageInfo(
            id_of_number(number),
            self.owner,
            self.epoch,
            self.sender,
            tuple(self.recipients),
            self.size_bytes,
            self.accepted_ms,
            self.held != 0,
            flags & FLAG_BOUNCE != 0,
            flags & FLAG_SMTPUTF8 != 0,
            flags & FLAG_8BITMIME != 0,
            self.accepted_by,
            self.client_host,
            self.helo,
            self.auth,
            self.parts,
        )

    @classmethod
    def accepted(
        cls, header: AcceptHeader, node: NodeId, index: int, now_ms: int, body_offset: int, body_bytes: int
    ) -> Message:
        """Return what the command in the entry at `index` makes, proposed by `node`; of its chunks nothing yet."""
        addresses = header.recipients
        if len(addresses) == 1:  # nearly all messages
            recipients = [Recipient(0, addresses[0])]
        else:
            recipients = [Recipient(ordinal, address) for ordinal, address in enumerate(addresses)]
        return cls(
            index << ORDINAL_BITS,
            node,
            index,
            0,
            0,
            message_flags(header.flags),
            now_ms,
            body_bytes,
            body_offset,
            body_bytes,
            node,
            header.sender,
            header.client_host,
            header.helo,
            header.auth,
            recipients,
            len(recipients),
        )

    @property
    def parts(self) -> tuple[BodyPart, ...]:
        """Where its body is, in order."""
        if self.chunks and not self.body_bytes:
            return self.chunks
        return (*self.chunks, BodyPart(self.number, self.body_offset, self.body_bytes))

    @property
    def index(self) -> int:
        """The log index of the entry that made it, and holds its body or the last of it."""
        return self.number >> ORDINAL_BITS

    def counts_for(self, outcome: OutcomeHeader) -> bool:
        """Return whether every result in `outcome` is the next of a recipient that is still open: all or nothing."""
        recipients = self.recipients
        count = len(recipients)
        seen = -1 if len(outcome.results) == 1 else 0
        for result in outcome.results:
            if result.ordinal >= count:
                return False
            recipient = recipients[result.ordinal]
            if recipient.state.final or result.attempt != recipient.attempts + 1:
                return False
            if seen >= 0:
                bit = 1 << result.ordinal
                if seen & bit:
                    return False
                seen |= bit
        return bool(outcome.results)

    def record(self, outcome: OutcomeHeader, now_ms: int) -> list[Recipient]:
        """Put the results into the recipients; return the changed ones. `counts_for(outcome)` holds."""
        changed = []
        for result in outcome.results:
            before = self.recipients[result.ordinal]
            state = STATES[result.state]
            after = Recipient(
                before.ordinal,
                before.address,
                state,
                # Giving up is no attempt of its own: it follows from the clock.
                before.attempts if state is RecipientState.EXPIRED else result.attempt,
                now_ms + result.delay_ms if state is RecipientState.DEFERRED else 0,
                now_ms,
                result.status,
                result.reply,
            )
            self.recipients[before.ordinal] = after
            changed.append(after)
            if state is not RecipientState.DEFERRED:
                self.open_count -= 1
        if self.open_count:
            self.reschedule()
        return changed

    def reschedule(self) -> None:
        """Bring `due_ms` up to date with the recipients."""
        self.due_ms = min((r.next_attempt_ms for r in self.recipients if not r.state.final), default=0)
