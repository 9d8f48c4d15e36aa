"""The door to the hot paths: the compiled half `_fastlog` where there is one, else its plain twin `_purelog`.

`SMTPRAFT_PURE=1` in the environment asks for the plain one. A compiled half that is there but does not load is an
error, not a reason to run a hundred times slower: only its absence is.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING or os.environ.get("SMTPRAFT_PURE", "0") not in ("", "0"):
    from smtpraft._purelog import *  # noqa: F403

    COMPILED: bool = False
else:
    try:
        from smtpraft._fastlog import *  # noqa: F403

        COMPILED = True
    except ModuleNotFoundError as error:
        if error.name != "smtpraft._fastlog":
            raise
        from smtpraft._purelog import *  # noqa: F403

        COMPILED = False

__all__ = [  # noqa: F405
    "COMPILED",
    "ENTRY_BYTES_MAX",
    "ENTRY_CONF_CHANGE",
    "ENTRY_CONF_CHANGE_V2",
    "ENTRY_HEADER_BYTES",
    "ENTRY_NORMAL",
    "FRAME_HEADER_BYTES",
    "FRAME_HEARTBEAT",
    "FRAME_HEARTBEAT_RESPONSE",
    "FRAME_VERSION",
    "INDEX_MAX",
    "Compacted",
    "CorruptEntry",
    "CorruptFrame",
    "FrameDecoder",
    "Log",
    "NotCached",
    "Unavailable",
    "block_range",
    "commands",
    "crc32c",
    "decode_entries",
    "decode_heartbeat",
    "decode_heartbeat_response",
    "encode_entries",
    "encode_frame",
    "encode_heartbeat",
    "encode_heartbeat_response",
    "proposed",
    "quorum_index",
    "survey",
]
