"""A server that takes all mail and throws it away: `python -m smtpraft.cli.bench.sink PORT`."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, cast

import uvloop

from smtpraft.cli.bench.target import BenchFailed

_END: Final = b"\r\n.\r\n"


class _Session(asyncio.Protocol):
    def __init__(self) -> None:
        self._in_data = False
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only
        self._transport.write(b"220 sink.example ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        replies = []
        while self._buffer:
            if self._in_data:
                end = self._buffer.find(_END)
                if end < 0:
                    self._buffer = self._buffer[-len(_END) :]
                    break
                self._buffer, self._in_data = self._buffer[end + len(_END) :], False
                replies.append(b"250 2.0.0 Ok\r\n")
                continue
            line, found, rest = self._buffer.partition(b"\r\n")
            if not found:
                break
            self._buffer = rest
            verb = line[:4].upper()
            if verb == b"DATA":
                self._in_data, self._buffer = True, b"\r\n" + rest
                replies.append(b"354 go on\r\n")
            elif verb == b"EHLO":
                replies.append(b"250-sink.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 0\r\n")
            elif verb == b"QUIT":
                self._transport.write(b"".join([*replies, b"221 2.0.0 Bye\r\n"]))
                self._transport.close()
                return
            else:
                replies.append(b"250 2.0.0 Ok\r\n")
        self._transport.write(b"".join(replies))


@contextmanager
def sink(port: int) -> Iterator[None]:
    """Take mail at `port`, in a process of its own.

    Raises:
        BenchFailed: it does not start.
    """
    process = subprocess.Popen([sys.executable, "-m", __name__, str(port)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        if process.stdout.readline() != b"ready\n":
            raise BenchFailed("the sink did not start")
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Session, "127.0.0.1", port, backlog=1024)
    print("ready", flush=True)
    await server.serve_forever()


def main() -> None:
    """Serve until killed."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(int(sys.argv[1])))


if __name__ == "__main__":
    main()
