"""A node of `smtpraft.cluster` with a map in memory, written to over TCP: the library without mail.

    python -m smtpraft.cli.bench.lognode '{"id": "n1", "directory": …, "cluster": port, "client": port, "peers": {…}}'

A client sends `length u32 | key 16 bytes | value`, big endian, one at a time, and gets `status u32 | index u64` once a
majority has the write on disk. Status 0: stored; 1: not stored, or unknown. An empty message is answered with index 1
if the node leads, else 0. Loopback only.
"""

from __future__ import annotations

import asyncio
import json
import signal
import struct
import sys
from pathlib import Path
from typing import Final, cast

import uvloop

from smtpraft.cli.bench.loadplan import KEY_DIGITS
from smtpraft.cluster import Command, MemoryMachine, Node, NodeId, NodeOptions, Peer, derive_cluster_id
from smtpraft.errors import SmtpRaftError

COMMAND_BYTES_MAX: Final = 1 << 20
_LENGTH: Final = struct.Struct(">I")
_REPLY: Final = struct.Struct(">IQ")


class Map(MemoryMachine):
    """A command is a key and its value; its result is the index of its entry."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.values: dict[bytes, bytes] = {}

    def command(self, item: Command) -> object:
        self.values[item.data[:KEY_DIGITS]] = item.data[KEY_DIGITS:]
        return item.index

    def dump(self) -> bytes:
        parts: list[bytes] = []
        for key, value in self.values.items():
            parts += (_LENGTH.pack(len(value)), key, value)
        return b"".join(parts)

    def load(self, state: bytes) -> None:
        self.values = {}
        at = 0
        while at < len(state):
            (size,) = _LENGTH.unpack_from(state, at)
            at += _LENGTH.size + KEY_DIGITS
            self.values[state[at - KEY_DIGITS : at]] = state[at : at + size]
            at += size


class _Client(asyncio.Protocol):
    """One connection: one write at a time."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        if len(self._buffer) < _LENGTH.size:
            return
        (size,) = _LENGTH.unpack_from(self._buffer)
        if not size:
            self._buffer = b""
            self._answer(0, self._node.is_leader)
        elif not KEY_DIGITS <= size <= COMMAND_BYTES_MAX or len(self._buffer) > _LENGTH.size + size:
            self._transport.abort()
        elif len(self._buffer) == _LENGTH.size + size:
            command, self._buffer = self._buffer[_LENGTH.size :], b""
            try:
                self._node.propose(command, self._done, foreseen=_index)
            except SmtpRaftError as error:
                self._done(None, error)

    def _done(self, result: object, error: Exception | None) -> None:
        if error is None:
            self._answer(0, cast(int, result))
        else:
            self._answer(1, 0)

    def _answer(self, status: int, index: int) -> None:
        if not self._transport.is_closing():  # a client that left waits for nothing, and uvloop would raise
            self._transport.write(_REPLY.pack(status, index))


def _index(index: int) -> object:
    """The machine's answer is known beforehand."""
    return index


async def _serve(facts: dict[str, object]) -> None:
    ports = cast("dict[str, int]", facts["peers"])
    own = NodeId(str(facts["id"]))
    directory = Path(str(facts["directory"]))
    peers = {NodeId(node): Peer(NodeId(node), "127.0.0.1", port) for node, port in ports.items()}
    options = NodeOptions(
        own,
        str(directory / "node"),
        derive_cluster_id("bench", list(peers)),
        ("127.0.0.1", ports[own]),
        tuple(peer for node, peer in peers.items() if node != own),
        snapshot_threshold=100_000,  # as etcd has it
    )
    node = Node(options, Map(str(directory / "map")))
    await node.start()
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    server = await loop.create_server(lambda: _Client(node), "127.0.0.1", cast(int, facts["client"]), backlog=1024)
    await node.wait_quorum(30.0)
    print("ready", flush=True)
    async with server:
        waits = {loop.create_task(stopped.wait()), loop.create_task(node.wait_failed())}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
    await node.stop()


def main() -> None:
    """Serve until SIGTERM."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        facts = json.loads(sys.argv[1])
        Path(facts["directory"]).mkdir(parents=True, exist_ok=True)
        runner.run(_serve(facts))


if __name__ == "__main__":
    main()
