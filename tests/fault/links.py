"""Links between nodes that can be cut: no reset, no end, only silence, as when a cable is pulled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Self

from smtpraft.cli.demo.nodes import DemoNode

CHUNK_BYTES = 65536


class Links:
    """One listener for each ordered pair of nodes. What a cut link was given is kept, and delivered when it heals."""

    def __init__(self, nodes: Sequence[DemoNode], ports: Sequence[int]) -> None:
        """`ports`: one for each ordered pair."""
        pairs = [(source, target) for source in nodes for target in nodes if source is not target]
        self._ports = dict(zip([(source.id, target.id) for source, target in pairs], ports, strict=False))
        assert len(self._ports) == len(pairs), "a port for each pair"
        self._targets = {node.id: node.cluster_port for node in nodes}
        self._open = {pair: asyncio.Event() for pair in self._ports}
        for event in self._open.values():
            event.set()
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        for pair, port in self._ports.items():

            async def accepted(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pair: tuple[str, str] = pair
            ) -> None:
                task = asyncio.current_task()
                assert task is not None
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                with contextlib.suppress(asyncio.CancelledError):  # the test is over; nobody waits for this task
                    await self._carry(pair, reader, writer)

            self._servers.append(await asyncio.start_server(accepted, "127.0.0.1", port))
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for server in self._servers:
            server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def peers(self, node: DemoNode) -> str:
        """Return `cluster.peers` of a node, by way of these links."""
        return ",".join(f"{to}=127.0.0.1:{port}" for (source, to), port in self._ports.items() if source == node.id)

    def cut(self, node: DemoNode) -> None:
        """Let no byte from or to this node pass."""
        for pair, event in self._open.items():
            if node.id in pair:
                event.clear()

    def heal(self) -> None:
        """Let everything pass, also what waits."""
        for event in self._open.values():
            event.set()

    async def _carry(self, pair: tuple[str, str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await self._open[pair].wait()
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._targets[pair[1]])
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._pump(pair, reader, far_writer))
                    tasks.create_task(self._pump(pair, far_reader, writer))
            except* OSError:
                pass
            finally:
                far_writer.close()
        writer.close()

    async def _pump(self, pair: tuple[str, str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK_BYTES):
            await self._open[pair].wait()
            writer.write(data)
            await writer.drain()
        await self._open[pair].wait()
        writer.close()
