"""SMTP and LMTP as bytes, from the sending side: replies read, commands and message text written. No I/O.

    reply   3DIGIT "-" text CRLF ... 3DIGIT " " text CRLF        (RFC 5321 §4.2)
    text    a line that begins with a dot gets another; only CRLF ends a line; a line of one dot ends the text (§4.5.2)

The final dot is not written here: `smtp_client` writes it alone, when everything else has left.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NamedTuple

REPLY_LINE_BYTES_MAX: Final = 2048  # RFC 5321 §4.5.3.1.5 asks for 512; some servers send more
REPLY_BYTES_MAX: Final = 64 * 1024
REPLY_TEXT_CHARS_MAX: Final = 1000  # what is kept of a reply; it travels in a log entry and in the bounce
FINAL_DOT: Final = b".\r\n"

_REPLY_LINE: Final = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*))?", re.DOTALL)
_ENHANCED: Final = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?:[ \n]|$)")
_NO_LINE_END: Final = re.compile(rb"\r(?!\n)|(?<!\r)\n|\0")


class MalformedReply(ValueError):
    """What the server sent is no reply, or too long for one."""


class Reply(NamedTuple):
    """A whole reply. `text` has its lines joined by line feeds, without codes, cut to a bounded length."""

    code: int
    text: str

    @property
    def enhanced(self) -> str:
        """The enhanced status code (RFC 2034) if the text begins with one of the reply's class, else ''."""
        match = _ENHANCED.match(self.text)
        return match[1] if match and match[1][0] == str(self.code)[0] else ""


class ReplyParser:
    """Cuts what arrives into replies."""

    def __init__(self) -> None:
        self._rest = b""
        self._lines: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[Reply]:
        """Return the replies that `data` completes.

        Raises:
            MalformedReply: the connection is of no use any more.
        """
        if self._rest:
            data = self._rest + data
        replies: list[Reply] = []
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            # A bare LF ends a line here. We only read: it is the server that would be fooled by its own reply.
            line = data[start : end - 1] if end > start and data[end - 1] == 0x0D else data[start:end]
            start = end + 1
            reply = self._line(line)
            if reply is not None:
                replies.append(reply)
        self._rest = data[start:]
        if len(self._rest) > REPLY_LINE_BYTES_MAX:
            raise MalformedReply(f"reply line longer than {REPLY_LINE_BYTES_MAX} bytes")
        return replies

    def _line(self, line: bytes) -> Reply | None:
        match = _REPLY_LINE.fullmatch(line)
        if match is None:
            raise MalformedReply(f"reply line without a code: {line[:80]!a}")
        self._size += len(line)
        if self._size > REPLY_BYTES_MAX or len(line) > REPLY_LINE_BYTES_MAX:
            raise MalformedReply(f"reply longer than {REPLY_BYTES_MAX} bytes")
        self._lines.append(match[3] or b"")
        if match[2] == b"-":
            return None
        text = b"\n".join(self._lines) if len(self._lines) > 1 else self._lines[0]
        self._lines.clear()
        self._size = 0
        return Reply(int(match[1]), text.decode("utf-8", "replace")[:REPLY_TEXT_CHARS_MAX])


@dataclass(frozen=True, slots=True)
class Extensions:
    """What a server offered in its answer to EHLO or LHLO."""

    pipelining: bool = False
    eight_bit: bool = False
    smtputf8: bool = False
    size: bool = False
    size_bytes_max: int = 0
    """The largest message it takes; 0 if it did not say."""

    @classmethod
    def parse(cls, reply: Reply) -> Extensions:
        """Read the keyword lines; the first line is the server's name."""
        offered: dict[str, str] = {}
        for line in reply.text.split("\n")[1:]:
            keyword, _, value = line.strip().partition(" ")
            offered.setdefault(keyword.upper(), value.strip())
        limit = offered.get("SIZE", "")
        return cls(
            pipelining="PIPELINING" in offered,
            eight_bit="8BITMIME" in offered,
            smtputf8="SMTPUTF8" in offered,
            size="SIZE" in offered,
            size_bytes_max=int(limit) if re.fullmatch("[0-9]{1,18}", limit) else 0,
        )


class DotStuffer:
    """Turns a message, block by block, into what is sent after DATA, short of the final dot.

    Blocks may be cut anywhere. What ends no line by the rules (a bare CR, a bare LF, a NUL) was refused when the
    message came in; should one get here all the same, it leaves as a space, as Postfix does it: never as half of a
    smuggled end.
    """

    def __init__(self) -> None:
        self._line_start = True
        self._held_cr = False
        self.replaced = False
        """Was something replaced?"""

    def block(self, data: bytes) -> bytes:
        """Return the next block's form on the wire; may be empty."""
        if self._held_cr:
            data = b"\r" + data
        self._held_cr = data.endswith(b"\r")  # whether it is half a line end, the next block tells
        if self._held_cr:
            data = data[:-1]
        if not data:
            return b""
        ends = data.count(b"\n")
        if data.count(b"\r") != ends or data.count(b"\r\n") != ends or b"\0" in data:
            data = _NO_LINE_END.sub(b" ", data)
            self.replaced = True
        if b"\r\n." in data:
            data = data.replace(b"\r\n.", b"\r\n..")
        if self._line_start and data.startswith(b"."):
            data = b"." + data
        self._line_start = data.endswith(b"\r\n")
        return data

    def end(self) -> bytes:
        """Return what is missing for the text to end with a line end."""
        tail = b""
        if self._held_cr:
            self._held_cr = False
            self._line_start = False
            self.replaced = True
            tail = b" "
        return tail if self._line_start else tail + b"\r\n"
