"""What may be set at most still fits what it must fit: an entry of the log, a frame between nodes."""

from __future__ import annotations

from smtpraft.cluster.envelope import COMMAND_HEADER_BYTES
from smtpraft.cluster.settings import ENTRY_PAYLOAD_BYTES_MAX
from smtpraft.cluster.transport import FRAME_BYTES_MAX
from smtpraft.config import RANGES
from smtpraft.fastlog import ENTRY_HEADER_BYTES
from smtpraft.spool import commands
from smtpraft.spool.types import Envelope


def test_the_most_recipients_with_the_longest_addresses_fit_an_entry() -> None:
    count = int(RANGES["smtp.max_recipients"][1])
    address = "u" * 64 + "@" + "d" * 255  # RFC 5321 §4.5.3.1
    envelope = Envelope(address, (address,) * count, client_host="IPv6:" + "f" * 39, helo="h" * 4096)
    command = commands.encode_accept(envelope, [])
    assert len(command) + COMMAND_HEADER_BYTES + ENTRY_HEADER_BYTES <= ENTRY_PAYLOAD_BYTES_MAX


def test_the_largest_append_fits_a_frame() -> None:
    assert RANGES["cluster.max_append_bytes"][1] + ENTRY_PAYLOAD_BYTES_MAX <= FRAME_BYTES_MAX
