"""A replicated state machine of one's own: names and counts, kept alike by three nodes."""

from __future__ import annotations

import asyncio
import json
import tempfile

from smtpraft.cluster import Command, MemoryMachine, Node, NodeId, NodeOptions, Peer, derive_cluster_id, free_port


class Tally(MemoryMachine):
    """A command is a name; its result is how often it has been said."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.counts: dict[str, int] = {}

    def command(self, item: Command) -> object:
        name = item.data.decode("utf-8", "replace")
        self.counts[name] = self.counts.get(name, 0) + 1
        return self.counts[name]

    def dump(self) -> bytes:
        return json.dumps(self.counts, sort_keys=True).encode()

    def load(self, state: bytes) -> None:
        self.counts = json.loads(state)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        peers = [Peer(NodeId(f"n{number}"), "127.0.0.1", free_port()) for number in (1, 2, 3)]
        cluster_id = derive_cluster_id("example", [peer.id for peer in peers])
        nodes, tallies = [], []
        for peer in peers:
            others = tuple(other for other in peers if other is not peer)
            options = NodeOptions(peer.id, f"{folder}/{peer.id}", cluster_id, (peer.host, peer.port), others)
            tallies.append(Tally(f"{folder}/{peer.id}.tally"))
            nodes.append(Node(options, tallies[-1]))
        await asyncio.gather(*(node.start() for node in nodes))

        await nodes[0].replicate(b"apples")  # at any node: a majority has it on disk when this returns
        print("apples:", await nodes[1].replicate(b"apples"))
        await nodes[2].read_index()  # this node is as new as all that had finished before
        print("node 3 knows of", tallies[2].counts)

        await asyncio.gather(*(node.stop() for node in nodes))


asyncio.run(main())
