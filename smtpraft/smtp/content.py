"""The content of a message, from DATA to the final dot, in blocks: no object per line.

Ends only at CRLF.CRLF. A bare CR, LF or NUL before that refuses the message at once: two servers that see different
line ends in the same bytes see different messages, which is how mail is smuggled (CVE-2023-51764 and its kin). Since
nothing of the kind comes in, none leaves.

A text line may have any length: RFC 5321 §4.5.3.1.6 says 1000 octets, but real mail has longer ones, and refusing it
helps nobody. What is sent on must keep to 998 octets and CRLF; that is the sending side's to see to.
"""

from __future__ import annotations

from typing import Final

_END: Final = b"\r\n.\r\n"
_LINE_WITH_DOT: Final = b"\r\n."
_STARTS_OF_END: Final = (b"\r\n.\r", b"\r\n.", b"\r\n", b"\r")  # longest first
_BLOCK_BYTES: Final = 128 * 1024  # small arrivals are gathered into blocks of this size


class BareOctet(ValueError):
    """The content holds a CR without LF, an LF without CR, or a NUL."""


class ContentReader:
    """Takes what the client sends after 354, in any chunks; the same bytes give the same content, however they arrive.

    Holds at most `size_max_bytes` (and the chunk at hand): a longer message is read on to its end and forgotten.
    """

    __slots__ = (
        "_blocks",
        "_gathered",
        "_held",
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
