"""Raft as a function of its inputs: no socket, file, clock, thread or task. How to use it: `rawnode`."""

from __future__ import annotations

from typing import Final

from smtpraft.consensus import _half, rawnode
from smtpraft.consensus.confchange import (
    LEAVE_JOINT,
    ChangeSingle,
    ChangeType,
    ConfChangeV2,
    Membership,
    Transition,
    decode_conf_change,
    encode_conf_change,
)
from smtpraft.consensus.config import ELECTION_LOWEST_ID, ELECTION_RAFT, Config
from smtpraft.consensus.errors import (
    InvalidConfChange,
    InvalidMessage,
    LocalMessage,
    LogConflict,
    LogLost,
    PeerNotFound,
    ProposalDropped,
)
from smtpraft.consensus.messages import (
    APPEND_THREAD,
    APPLY_THREAD,
    NO_ENTRIES,
    ConfState,
    EntryRange,
    HardState,
    Message,
    MessageType,
    Output,
    ReadState,
    Role,
    SnapshotMeta,
    SoftState,
)
from smtpraft.consensus.progress import Progress, ProgressState
from smtpraft.consensus.rawnode import PeerStatus, RawNode, Status

COMPILED: Final = _half.is_compiled(rawnode)
"""Is this the compiled half?"""

__all__ = [
    "APPEND_THREAD",
    "APPLY_THREAD",
    "COMPILED",
    "ELECTION_LOWEST_ID",
    "ELECTION_RAFT",
    "LEAVE_JOINT",
    "NO_ENTRIES",
    "ChangeSingle",
    "ChangeType",
    "ConfChangeV2",
    "ConfState",
    "Config",
    "EntryRange",
    "HardState",
    "InvalidConfChange",
    "InvalidMessage",
    "LocalMessage",
    "LogConflict",
    "LogLost",
    "Membership",
    "Message",
    "MessageType",
    "Output",
    "PeerNotFound",
    "PeerStatus",
    "Progress",
    "ProgressState",
    "ProposalDropped",
    "RawNode",
    "ReadState",
    "Role",
    "SnapshotMeta",
    "SoftState",
    "Status",
    "Transition",
    "decode_conf_change",
    "encode_conf_change",
]
