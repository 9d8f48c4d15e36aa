"""The delivery log: one line for what one attempt meant to one recipient.

    Delivery          the far side took responsibility
    TransientFailure  it will be tried again
    Bounce            it never will; the sender is told
    Expiration        it was tried for long enough; the sender is told

The fields are KumoMTA's: who reads its log finds the same words here. Outside text is quoted; no line holds a body.
"""

from __future__ import annotations

import logging

from smtpraft.delivery.attempt import Answer
from smtpraft.delivery.routes import Destination
from smtpraft.spool.types import MessageInfo, Recipient, RecipientState
from smtpraft.types import NodeId

log = logging.getLogger(__name__)

_KINDS = {
    RecipientState.DELIVERED: "Delivery",
    RecipientState.DEFERRED: "TransientFailure",
    RecipientState.FAILED: "Bounce",
    RecipientState.EXPIRED: "Expiration",
}


def log_result(
    node: NodeId,
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
    log.info(
        "%s id=%s sender=%r recipient=%r queue=%s site=%s size=%d code=%d enhanced_code=%s content=%r command=%r "
        "peer_address=%s num_attempts=%d next_attempt_s=%.1f node=%s",
        _KINDS[state],
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
        delay_ms / 1000,
        node,
    )


def log_dead_letter(node: NodeId, info: MessageInfo, count: int) -> None:
    """A message from <> has failed: there is nobody to tell but the operator."""
    log.warning("DeadLetter id=%s recipients=%d size=%d node=%s", info.id, count, info.size_bytes, node)
