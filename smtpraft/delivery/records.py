"""The delivery log: one line for what one attempt meant to one recipient.

    Delivery          the far side took responsibility
    TransientFailure  it will be tried again
    Bounce            it never will; the sender is told
    Expiration        it was tried for long enough; the sender is told

The fields are KumoMTA's: who reads its log finds the same words here. Outside text is quoted; no line holds a body.
"""

from __future__ import annotations

import logging
from typing import Final

from smtpraft.delivery.attempt import Answer
from smtpraft.delivery.routes import Destination
from smtpraft.spool.messagelog import (
    BOUNCE,
    DEAD_LETTER,
    DELIVERY,
    EXPIRATION,
    TRANSIENT_FAILURE,
    MessageEvent,
    tell,
)
from smtpraft.spool.types import MessageInfo, Recipient, RecipientState

log = logging.getLogger(__name__)

_SHAPES: Final = {
    RecipientState.DELIVERED: DELIVERY,
    RecipientState.DEFERRED: TRANSIENT_FAILURE,
    RecipientState.FAILED: BOUNCE,
    RecipientState.EXPIRED: EXPIRATION,
}


def log_result(
    info: MessageInfo,
    recipient: Recipient,
    destination: Destination,
    state: RecipientState,
    answer: Answer,
    peer: str,
    delay_ms: int,
) -> None:
    """Write the line; cheap when nobody listens."""
    if not log.isEnabledFor(logging.INFO):
        return
    values = (
        info.id,
        info.sender,
        recipient.address,
        destination,
        destination.site,
        info.size_bytes,
        answer.code,
        answer.status,
        answer.text,
        answer.command,
        peer or "-",
        recipient.attempts + 1,
        round(delay_ms / 1000, 1),
    )
    tell(log, MessageEvent(_SHAPES[state], values))


def log_dead_letter(info: MessageInfo, count: int) -> None:
    """A message from <> has failed: there is nobody to tell but the operator."""
    log.warning(MessageEvent(DEAD_LETTER, (info.id, count, info.size_bytes)))
