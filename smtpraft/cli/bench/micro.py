"""The hot paths, compiled and pure in turn, and the consensus core: microseconds of one call, in one process.

Not shown: cold caches, the event loop, anything that waits. A figure is the median of some repeats of many calls; what
is divided by each other is repeated in turn, for the pace of a machine that others use changes within a second.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from random import Random
from statistics import median
from types import ModuleType
from typing import Final

from smtpraft.cli.bench.figures import Figures
from smtpraft.consensus import (
    APPLY_THREAD,
    Config,
    ConfState,
    HardState,
    RawNode,
    Role,
)
from smtpraft.fastlog import Log
from smtpraft.types import NodeId

PEERS: Final = 4  # of a cluster of five
REPEATS: Final = 9
CACHE_BYTES: Final = 1 << 20  # as a node does, the logs here forget the bytes of old entries
_HALVES: Final = (("compiled", "smtpraft._fastlog"), ("pure", "smtpraft._purelog"))
_BEAT: Final = (3, 1_000_000, 77, 999_000, 12345, 1_000_000, 999_999, 2**63, 10**12)


def measure(figures: Figures, rounds: int, say: Callable[[str], None]) -> None:
    """Note `micro.compiled.*`, `micro.pure.*`, `micro.cycle.*` and `micro.call`, a value a round."""
    halves = [(name, import_module(module)) for name, module in _HALVES if find_spec(module) is not None]
    if len(halves) < 2:
        figures.reasons["micro.compiled."] = "the compiled half is not built"
    for number in range(1, rounds + 1):
        gc.collect()
        gc.disable()
        try:
            for question, ask in QUESTIONS.items():
                _note(figures, {f"micro.{name}.{question}.us": ask(half) for name, half in halves})
            _note(
                figures,
                {
                    "micro.call.us": _call,
                    "micro.cycle.1.us": lambda: cycle_us(1, 2000),
                    "micro.cycle.64.us": lambda: cycle_us(64, 64 * 200),
                },
            )
        finally:
            gc.enable()
        say(f"micro {number}/{rounds}")


def _note(figures: Figures, samples: dict[str, Callable[[], float]]) -> None:
    """Note the median of each, repeated in turn."""
    values: dict[str, list[float]] = {name: [] for name in samples}
    for _ in range(REPEATS):
        for name, sample in samples.items():
            values[name].append(sample())
    for name, each in values.items():
        figures.add(name, median(each))


def _timed(calls: int, work: Callable[[], object]) -> float:
    """Return the microseconds of CPU of each of `calls` that `work` does; others on this machine count for nothing."""
    began = time.thread_time_ns()
    work()
    return (time.thread_time_ns() - began) / 1e3 / calls


def _call() -> float:
    """Of an empty function, the loop around it taken off."""

    def nothing() -> None:
        pass

    def calls() -> None:
        for _ in range(100_000):
            nothing()

    def loop() -> None:
        for _ in range(100_000):
            pass

    return _timed(100_000, calls) - _timed(100_000, loop)


def _append(half: ModuleType, count: int, calls: int) -> Callable[[], float]:
    payloads = [bytes((number + position) & 0xFF for position in range(64)) for number in range(count)]

    def once() -> float:
        log = half.Log()
        append = log.append

        def work() -> None:
            for _ in range(calls):
                append(1, 7, 0, payloads)

        us = _timed(calls, work)
        assert log.last_index == calls * count
        return us

    return once


def _verify_append(half: ModuleType) -> Callable[[], float]:
    """A follower takes blocks of 100 entries of 256 bytes; the time of one entry."""
    source = half.Log()
    blocks = [source.append(1, 7, 0, [bytes(256)] * 100) for _ in range(40)]

    def once() -> float:
        log = half.Log()

        def work() -> None:
            for block in blocks:
                log.match(block)
                log.append_block(block)

        us = _timed(100 * len(blocks), work)
        assert log.last_index == source.last_index
        return us

    return once


def _heartbeats(half: ModuleType) -> Callable[[], float]:
    """What a leader of five sends and hears in one heartbeat interval: four frames out, four answers decoded."""
    answer = half.encode_heartbeat_response(*_BEAT[:8])[12:]
    encode, decode = half.encode_heartbeat, half.decode_heartbeat_response

    def work() -> None:
        for _ in range(2000):
            for _ in range(PEERS):
                encode(*_BEAT)
            for _ in range(PEERS):
                decode(answer)

    return lambda: _timed(2000, work)


def _quorum(half: ModuleType, voters: int) -> Callable[[], float]:
    matched = [1_000_000 + 7 * voter % 5 for voter in range(voters)]
    tally = half.quorum_index

    def work() -> None:
        for _ in range(10_000):
            tally(matched)

    return lambda: _timed(10_000, work)


QUESTIONS: Final[dict[str, Callable[[ModuleType], Callable[[], float]]]] = {
    "append100": lambda half: _append(half, 100, 40),
    "append1": lambda half: _append(half, 1, 2000),
    "verify_append": _verify_append,
    "heartbeats": _heartbeats,
    "quorum3": lambda half: _quorum(half, 3),
    "quorum5": lambda half: _quorum(half, 5),
    "quorum7": lambda half: _quorum(half, 7),
}


# ---- the core ----


class Trio:
    """Three voters in memory: what they say to each other and to their disks arrives at once."""

    def __init__(self) -> None:
        names = [NodeId(f"n{number}") for number in (1, 2, 3)]
        state = ConfState(voters=tuple(names))
        self.nodes = {
            name: RawNode(Config(id=name), Log(), state, HardState(), 0, Random(number))
            for number, name in enumerate(names)
        }
        self.applied = 0
        self._evictions = [node.log.evict for node in self.nodes.values()]
        self.leader = self.nodes[names[0]]
        self.leader.campaign()
        self.settle()
        assert self.leader.role is Role.LEADER

    def settle(self) -> None:
        """Carry everything to where it goes until nobody has anything to say; ask one after the other.

        What goes to a disk or a state machine is done at once, and answered. In one function, for its own time counts.
        """
        nodes = self.nodes
        talk = True
        while talk:
            talk = False
            for node in nodes.values():
                if not node.has_ready():
                    continue
                talk = True
                for message in node.ready().messages:
                    to = message.to
                    if to in nodes:
                        entries = message.entries
                        if entries:
                            message.block = b"".join(node.log.spans(entries.first, entries.last))
                        nodes[to].step(message)
                        continue
                    if to == APPLY_THREAD:
                        entries = message.entries
                        self.applied += entries.last - entries.first + 1
                    for response in message.responses:
                        nodes[response.to].step(response)
        for evict in self._evictions:
            evict(CACHE_BYTES)


def cycle_us(batch: int, entries: int) -> float:
    """Return the microseconds of an entry of 256 bytes: proposed, stored by three, committed, applied by three."""

    trio = Trio()
    payloads = [bytes(256)] * batch
    before = trio.applied

    def work() -> None:
        for _ in range(entries // batch):
            trio.leader.propose(payloads)
            trio.settle()

    us = _timed(entries // batch * batch, work)
    assert trio.applied - before == 3 * (entries // batch * batch)
    return us
