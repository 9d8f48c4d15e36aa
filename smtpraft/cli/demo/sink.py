"""An SMTP server that accepts everything and keeps the bytes exactly: where the demo's mail must arrive."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Final, cast

_ADDRESS: Final = re.compile(rb"<([^>]*)>")
_END: Final = b"\r\n.\r\n"
COMMAND_BYTES_MAX: Final = 4096


class SinkSession(asyncio.Protocol):
    """One connection: commands in, replies out, PIPELINING included."""

    def __init__(self, arrived: Callable[[list[str], bytes], None]) -> None:
        self._arrived = arrived
        self._buffer = bytearray()
        self._scanned = 0
        self._in_data = False
        self._recipients: list[str] = []
        self.helo = ""
        """What the client said its name was."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only
        self._transport.write(b"220 sink.example ESMTP demo\r\n")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        replies: list[bytes] = []
        while self._take_content(replies) if self._in_data else self._take_command(replies):
            pass
        if replies:
            self._transport.write(b"".join(replies))
        if replies and replies[-1].startswith((b"221", b"500")):
            self._transport.close()

    def _take_content(self, replies: list[bytes]) -> bool:
        # The buffer begins with the CRLF of the DATA line, so that a dot at once is found too.
        end = self._buffer.find(_END, self._scanned)
        if end < 0:
            self._scanned = max(0, len(self._buffer) - len(_END) + 1)
            return False
        content = bytes(self._buffer[: end + 2]).replace(b"\r\n..", b"\r\n.")[2:]
        del self._buffer[: end + len(_END)]
        self._in_data = False
        self._arrived(self._recipients, content)
        self._recipients = []
        replies.append(b"250 2.0.0 Ok\r\n")
        return True

    def _take_command(self, replies: list[bytes]) -> bool:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            if len(self._buffer) > COMMAND_BYTES_MAX:
                replies.append(b"500 5.5.2 Line too long\r\n")
                self._buffer.clear()
            return False
        line = bytes(self._buffer[:end])
        verb = line[:4].upper()
        if verb == b"DATA" and self._recipients:
            del self._buffer[:end]
            self._scanned = 0
            self._in_data = True
            replies.append(b"354 Go on\r\n")
            return True
        del self._buffer[: end + 2]
        if verb == b"EHLO":
            self.helo = line[5:].decode("ascii", "replace")
            replies.append(
                b"250-sink.example\r\n250-PIPELINING\r\n250-SIZE 104857600\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"
            )
        elif verb == b"QUIT":
            replies.append(b"221 2.0.0 Bye\r\n")
        elif verb == b"DATA":
            replies.append(b"503 5.5.1 No recipients\r\n")
        else:
            if verb in (b"MAIL", b"RSET", b"HELO"):
                self._recipients = []
            elif verb == b"RCPT" and (address := _ADDRESS.search(line)):
                self._recipients.append(address[1].decode())
            replies.append(b"250 2.0.0 Ok\r\n")
        return True


async def start_sink(port: int, arrived: Callable[[list[str], bytes], None]) -> asyncio.Server:
    """Listen on a loopback port; call `arrived(recipients, content)` for each message before its 250 leaves."""
    return await asyncio.get_running_loop().create_server(lambda: SinkSession(arrived), "127.0.0.1", port)
