"""Links between nodes that can be cut, with no reset and no end, as when a cable is pulled; or be long ones."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Self

from smtpraft.cli.demo.nodes import DemoNode

CHUNK_BYTES = 65536
CHUNKS_UNDER_WAY_MAX = 64
TALK_S = 5.0  # nodes ping each other twice a second


class Links:
    """One listener before each node, which says that it is found there; who dials is told by its address.

    What a cut link was given is kept, and delivered when it heals.
    """

    def __init__(self, nodes: Sequence[DemoNode], ports: Sequence[int]) -> None:
        """`ports`: one for each node."""
        self._ports = dict(zip([node.id for node in nodes], ports, strict=False))
        assert len(self._ports) == len(nodes), "a port for each node"
        # A node listens on an address of its own, and so dials from there too.
        self._hosts = {node.id: f"127.0.1.{number}" for number, node in enumerate(nodes, 1)}
        self._targets = {node.id: node.cluster_port for node in nodes}
        pairs = [(source.id, target.id) for source in nodes for target in nodes if source is not target]
        self._open = {pair: asyncio.Event() for pair in pairs}
        for event in self._open.values():
            event.set()
        self._delay_s = dict.fromkeys(pairs, 0.0)
        self._carried_at = dict.fromkeys(pairs, 0.0)
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        sources = {host: node for node, host in self._hosts.items()}
        for target, port in self._ports.items():

            async def accepted(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str = target
            ) -> None:
                source = sources.get(writer.get_extra_info("peername")[0])
                if source is None or source == target:
                    writer.close()  # to be asked by itself, or by whom we do not know, is nothing to be cut
                    return
                task = asyncio.current_task()
                assert task is not None
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                with contextlib.suppress(asyncio.CancelledError):  # the test is over; nobody waits for this task
                    await self._carry((source, target), reader, writer)

            self._servers.append(await asyncio.start_server(accepted, "127.0.0.1", port))
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for server in self._servers:
            server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def settings(self, node: DemoNode) -> dict[str, str]:
        """Return what a node is to be launched with, that these links are its only ones.

        They are what it advertises: the members that the log knows are reached so, whatever `cluster.peers` says.
        """
        return {
            "CLUSTER__LISTEN": f"{self._hosts[node.id]}:{node.cluster_port}",
            "CLUSTER__ADVERTISE": f"127.0.0.1:{self._ports[node.id]}",
            "CLUSTER__PEERS": ",".join(f"{to}=127.0.0.1:{port}" for to, port in self._ports.items() if to != node.id),
        }

    def cut(self, node: DemoNode) -> None:
        """Let no byte from or to this node pass.

        Raises:
            AssertionError: none has passed lately, to cut these links changes nothing.
        """
        since = time.monotonic() - TALK_S
        silent = [pair for pair, at in self._carried_at.items() if node.id in pair and at < since]
        assert not silent, f"these nodes do not talk by way of these links: {silent}"
        for pair, event in self._open.items():
            if node.id in pair:
                event.clear()

    def heal(self) -> None:
        """Let everything pass, also what waits."""
        for event in self._open.values():
            event.set()

    def move(self, node: DemoNode, one_way_s: float) -> None:
        """Let what goes to this node, or comes from it, be under way for so long."""
        for pair in self._delay_s:
            if node.id in pair:
                self._delay_s[pair] = one_way_s

    async def _carry(self, pair: tuple[str, str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await self._open[pair].wait()
            far_reader, far_writer = await asyncio.open_connection(self._hosts[pair[1]], self._targets[pair[1]])
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
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS_UNDER_WAY_MAX)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._deliver(pair, under_way, writer))
            data = b"."
            while data:
                data = await reader.read(CHUNK_BYTES)
                self._carried_at[pair] = time.monotonic()
                await under_way.put((self._carried_at[pair], data))

    async def _deliver(
        self, pair: tuple[str, str], under_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        while True:
            sent_at, data = await under_way.get()
            await asyncio.sleep(max(0.0, sent_at + self._delay_s[pair] - time.monotonic()))
            await self._open[pair].wait()
            if not data:
                writer.close()
                return
            if writer.is_closing():
                raise ConnectionResetError("the other end has gone")
            writer.write(data)
            await writer.drain()
