"""One node's way out: frames to the network, and reads from its log for peers that are behind, in virtual time."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Final, cast

from smtpraft import fastlog
from smtpraft.cluster.outbound import Outbound
from smtpraft.consensus import Role
from smtpraft.simulator.network import CALM_US, Frame
from smtpraft.types import NodeId

if TYPE_CHECKING:
    from smtpraft.simulator.process import Process


_KIND_AT: Final = 6  # of a frame: after its length and the length of its head


class Wires:
    """What `cluster.transport` is, for one process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._network = process.world.network
        self._strangers = process.plan.has("wipe")

    def send(self, peer: NodeId, type: int, head: bytes, spans: Sequence[bytes | memoryview] = ()) -> bool:
        """Put a frame on its way. False: it could not be, and the node knows; often it does not."""
        process = self._process
        directories = (process.host.member.incarnation, process.directories.of(peer)) if self._strangers else None
        frame = Frame(type, head, b"".join(spans) if spans else b"", directories)
        return self._network.send(process.id, peer, frame) or process.random.random() < 0.5

    def send_control(self, peer: NodeId, frame: bytes) -> bool:
        """As `send`, for a frame that is whole."""
        return self.send(peer, frame[_KIND_AT], frame[fastlog.FRAME_HEADER_BYTES :])

    def connected(self, peer: NodeId) -> bool:
        """Do both believe that they can speak?"""
        return self._network.connected(self._process.id, peer)


class VirtualOutbound(Outbound):
    """The real way out, which waits for its disk in virtual time."""

    def __init__(self, process: Process, wires: Wires) -> None:
        core = process.core
        super().__init__(
            wires,
            process.log,
            read_entries=process.read,
            reader=cast(Executor, None),
            is_current=lambda term: core.term == term and core.role is Role.LEADER,
            may_wait=core.commit_may_wait,
            unreachable=process.unreachable,
            on_failure=process.host.fail,
        )
        self._process = process

    def _read_for(self, peer: NodeId) -> None:
        """Between what the thread reads and what the loop makes of it, the log may change."""
        message = self._next_to_read(peer)
        if message is None:
            del self._waiting[peer]
            return
        process = self._process
        slowest_us = CALM_US if process.world.calm else process.plan.disk_us

        def read() -> None:
            result: tuple[bytes, int] | None = None
            with contextlib.suppress(fastlog.Compacted, fastlog.Unavailable):
                result = self._read(message.entries.first, message.entries.last)
            process.after(process.random.randrange(1 + slowest_us), have, result)

        def have(result: tuple[bytes, int] | None) -> None:
            try:
                if result is None:
                    raise fastlog.Unavailable("not to be read")
                self._was_read(message, *result)
                self._read_for(peer)
            except (fastlog.Compacted, fastlog.Unavailable):
                del self._waiting[peer]
                process.unreachable(peer)

        process.after(process.random.randrange(1 + slowest_us), read)
