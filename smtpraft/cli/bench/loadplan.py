"""What both halves of the load generator share: its protocols, and how it fails."""

from __future__ import annotations

from typing import Final

from smtpraft.errors import SmtpRaftError

SMTP: Final = 0
"""Commands: EHLO, MAIL, RCPT, DATA, the content with its final dot, QUIT. No PIPELINING, as `smtp-source`."""
FRAMED: Final = 1
"""The nodes of `lognode`. Commands: nothing, and the message `length u32 | key 16 bytes | value`."""
GRPC: Final = 2
"""HTTP/2, as etcd speaks it. Commands: what opens a connection; HEADERS and DATA of one request."""

KEY_DIGITS: Final = 16
KEYS: Final = 16
"""Each session writes to so many keys of its own, one after the other: what is stored stays small."""
PORTS_MAX: Final = 64
SESSIONS_MAX: Final = 10_000
MESSAGES_MAX: Final = 100_000_000


class LoadFailed(SmtpRaftError):
    """A reply was not what it must be, none came, or a session broke: a figure would be of something else."""
