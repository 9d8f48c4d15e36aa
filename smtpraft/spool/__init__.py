"""The replicated mail queue: commands, the SQLite state machine, message bodies, and a typed client.

`SpoolMachine` is what a `cluster.Node` runs, `SpoolClient` what everybody else talks to; the words they use are in
`smtpraft.spool.types`.
"""

from __future__ import annotations

from smtpraft.spool.client import Replicator, SpoolClient
from smtpraft.spool.errors import SpoolFull, SpoolNewer, SpoolUnusable
from smtpraft.spool.keyclient import KeyValues
from smtpraft.spool.keyvalues import ABSENT, KeyConflict, KeyInfo, KeyValue, MapFull
from smtpraft.spool.machine import SpoolMachine
from smtpraft.spool.types import (
    Changes,
    EndedMessage,
    Envelope,
    MessageId,
    MessageInfo,
    MessageNotFound,
    Outcome,
    Recipient,
    RecipientState,
    Result,
    deferred,
    delivered,
    expired,
    failed,
    index_of,
    message_id,
    parse_message_id,
)

__all__ = [
    "ABSENT",
    "Changes",
    "EndedMessage",
    "Envelope",
    "KeyConflict",
    "KeyInfo",
    "KeyValue",
    "KeyValues",
    "MapFull",
    "MessageId",
    "MessageInfo",
    "MessageNotFound",
    "Outcome",
    "Recipient",
    "RecipientState",
    "Replicator",
    "Result",
    "SpoolClient",
    "SpoolFull",
    "SpoolMachine",
    "SpoolNewer",
    "SpoolUnusable",
    "deferred",
    "delivered",
    "expired",
    "failed",
    "index_of",
    "message_id",
    "parse_message_id",
]
