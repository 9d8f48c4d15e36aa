"""What an SMTP client sends, cut into commands and contents: the specification of the compiled half, `_fastscan`.

Only CRLF ends a line. A bare CR, LF or NUL makes a whole command line invalid, up to its CRLF: nothing after it is
taken for a command, so what a careless relay put into an address cannot start one (RFC 5321 §2.3.8, §4.1.1.4). Within
the content of a message it refuses the message at once: two servers that see different line ends in the same bytes see
different messages, which is how mail is smuggled (CVE-2023-51764 and its kin). Since nothing of the kind comes in, none
leaves. There is no object per line of content.
"""

from __future__ import annotations

import re
from typing import Final

from smtpraft.smtp.faults import COMMAND_BYTES_MAX_EXTENDED, BareOctet, LineFault

__all__ = ["CommandLines", "ContentReader", "plain_path"]

_END: Final = b"\r\n.\r\n"
_LINE_WITH_DOT: Final = b"\r\n."
_STARTS_OF_END: Final = (b"\r\n.\r", b"\r\n.", b"\r\n", b"\r")  # longest first
_BLOCK_BYTES: Final = 128 * 1024  # small arrivals are gathered into blocks of this size
_ROOM_BYTES: Final = 64 * 1024

_ATOM: Final = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_SUBDOMAIN: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_PLAIN_PATH: Final = re.compile(rf"<({_ATOM}(?:\.{_ATOM})*)@({_SUBDOMAIN}(?:\.{_SUBDOMAIN})*)>")
_PLAIN_BYTES_MAX: Final = 255  # of a local part, and of a domain (RFC 5321 §4.5.3.1.2)

Command = tuple[bytes, "str | None", int]


def plain_path(text: str) -> tuple[str, str, int] | None:
    """Return (local part, domain, length of the path) if `text` begins with a path such as nearly all mail has.

    That is a mailbox in ASCII, without quotes, route or address literal. None says nothing but that `parse_path` must
    look at it.
    """
    match = _PLAIN_PATH.match(text)
    if match is None or len(match[1]) > _PLAIN_BYTES_MAX or len(match[2]) > _PLAIN_BYTES_MAX:
        return None
    return match[1], match[2], match.end()


class CommandLines:
    """Cuts what was received into command lines. The same bytes give the same lines, however they arrive."""

    __slots__ = ("_data", "_discarding", "_position")

    def __init__(self) -> None:
        self._data = b""
        self._position = 0
        self._discarding = False  # the line was already answered; its end is not here yet

    def feed(self, data: bytes) -> None:
        """Append what was received."""
        if self._position < len(self._data):
            data = self._data[self._position :] + data
        self._data = data
        self._position = 0

    @property
    def waiting_bytes(self) -> int:
        """How much was received and neither returned nor taken."""
        return len(self._data) - self._position

    def next_command(self) -> Command | LineFault | None:
        """Return (verb in capitals, argument, length of the line) of the next line, or what is wrong with it.

        None: more must be received first. The argument has no blanks around it; it is None if it is not UTF-8. The
        line's length is without its CRLF.

        A fault is told as soon as it is seen, once for its line: a client that ends its lines otherwise would wait for
        ever for an answer.
        """
        while True:
            end = self._data.find(b"\r\n", self._position)
            if self._discarding:
                if end < 0:
                    self._keep_last_cr()
                    return None
                self._discarding = False
                self._position = end + 2
                continue
            if end < 0:
                fault = self._unfinished_fault()
                if fault is not None:
                    self._discarding = True
                    self._keep_last_cr()
                return fault
            line = self._data[self._position : end]
            self._position = end + 2
            if b"\n" in line or b"\r" in line or b"\0" in line:
                return LineFault.BARE
            return LineFault.TOO_LONG if len(line) > COMMAND_BYTES_MAX_EXTENDED else _command(line)

    def take_rest(self) -> bytes:
        """Return everything that was received and not yet returned as a line: it is mail content now."""
        rest = self._data[self._position :]
        self._data = b""
        self._position = 0
        return rest

    def _unfinished_fault(self) -> LineFault | None:
        start = self._data[self._position :].removesuffix(b"\r")  # that CR may be half of the line's end
        if b"\n" in start or b"\r" in start or b"\0" in start:
            return LineFault.BARE
        return LineFault.TOO_LONG if len(start) > COMMAND_BYTES_MAX_EXTENDED else None

    def _keep_last_cr(self) -> None:
        self._data = b"\r" if self._data.endswith(b"\r", self._position) else b""
        self._position = 0


def _command(line: bytes) -> Command:
    verb, _, argument_bytes = line.partition(b" ")
    try:
        return verb.upper(), argument_bytes.decode().strip(" \t"), len(line)
    except UnicodeDecodeError:
        return verb.upper(), None, len(line)


class ContentReader:
    """Takes what the client sends after 354, in any chunks; the same bytes give the same content, however they arrive.

    It ends at CRLF.CRLF. A text line may have any length: RFC 5321 §4.5.3.1.6 says 1000 octets, but real mail has
    longer ones, and refusing it helps nobody. What is sent on must keep to 998 octets and CRLF; that is the sending
    side's to see to.

    Holds at most `size_max_bytes` (and the chunk at hand): a longer message is read on to its end and forgotten.
    """

    __slots__ = (
        "_blocks",
        "_gathered",
        "_held",
        "_room",
        "_started",
        "ascii",
        "forgotten",
        "rest",
        "size_bytes",
        "size_max_bytes",
    )

    def __init__(self, size_max_bytes: int) -> None:
        self.size_max_bytes = size_max_bytes
        self.size_bytes = 0
        """Octets of content so far, dots unstuffed (RFC 1870 §5: what SIZE counts), forgotten ones included."""
        self.ascii = True
        """No octet above 127 so far?"""
        self.forgotten = False
        """Was the content dropped (too large, or by `forget`)?"""
        self.rest = b""
        """What followed the end: the client's next commands."""
        # The content begins as if after a line's end, so that a dot right at the start ends an empty message.
        self._held = b"\r\n"
        self._started = False
        self._room: memoryview | None = None
        self._blocks: list[bytes] = []
        self._gathered = bytearray()

    def feed(self, data: bytes) -> bool:
        """Take what was received. Return whether the content is complete.

        Raises:
            BareOctet: this is not how mail is sent; nothing that follows can be trusted.
        """
        data = self._held + data
        dot = data.find(_LINE_WITH_DOT)
        if dot >= 0:
            # Nearly always the first dot that begins a line is the last line.
            stuffed = not data.startswith(_END, dot)
            end = data.find(_END, dot) if stuffed else dot
            if end >= 0:
                self.rest = data[end + len(_END) :]
                self._settle(data[: end + 2], stuffed)
                return True
        # Hold back what may be the beginning of the end; so a settled piece never splits CRLF, nor CRLF and dot.
        self._held = next((start for start in _STARTS_OF_END if data.endswith(start)), b"")
        if self._held:
            data = data[: -len(self._held)]
        if data:
            self._settle(data, dot >= 0)
        return False

    def room(self) -> memoryview:
        """Return where the next octets can be received, to be told to `filled`: some tens of KiB, used at once."""
        if self._room is None:
            self._room = memoryview(bytearray(_ROOM_BYTES))
        return self._room

    def filled(self, count: int) -> bool:
        """As `feed`, of the first `count` octets of the `room` that was returned last."""
        room = self.room()
        if not 0 <= count <= len(room):
            raise ValueError(f"{count} octets in a room of {len(room)}")
        return self.feed(bytes(room[:count]))

    def forget(self) -> None:
        """Drop the content and keep none of the rest; go on until its end."""
        self.forgotten = True
        self._blocks.clear()
        self._gathered = bytearray()

    def take_blocks(self) -> list[bytes]:
        """Return the content of a complete message; the reader keeps nothing."""
        blocks = self._blocks
        if self._gathered:
            blocks.append(bytes(self._gathered))
        self._blocks = []
        self._gathered = bytearray()
        return blocks

    def _settle(self, data: bytes, stuffed: bool) -> None:
        line_ends = data.count(b"\r\n")
        if data.count(b"\r") != line_ends or data.count(b"\n") != line_ends or b"\0" in data:
            raise BareOctet
        if stuffed:
            data = data.replace(_LINE_WITH_DOT, b"\r\n")  # RFC 5321 §4.5.2
        if not self._started:
            self._started = True
            data = data[2:]
        self.size_bytes += len(data)
        if self.forgotten:
            return
        if self.size_bytes > self.size_max_bytes:
            self.forget()
            return
        if self.ascii and not data.isascii():
            self.ascii = False
        if len(data) < _BLOCK_BYTES // 4 or self._gathered:
            self._gathered += data
            if len(self._gathered) >= _BLOCK_BYTES:
                self._blocks.append(bytes(self._gathered))
                self._gathered = bytearray()
        else:
            self._blocks.append(data)
