"""The consensus core, and the hot paths as a node uses them, in one process: `make bench`.

Not shown: the loop, the network, the disk. `smtpraft bench --only micro` judges the same against targets.
"""

from __future__ import annotations

from types import ModuleType

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benches.bench_fastlog import grouped, half  # noqa: F401  the fixture
from smtpraft.cli.bench.micro import PEERS, QUESTIONS, Trio


@pytest.mark.parametrize("batch", [1, 64])
def bench_cycle(benchmark: BenchmarkFixture, batch: int) -> None:
    """Proposed, stored by three, committed, applied by three; the time of a batch."""
    trio = Trio()
    payloads = [bytes(256)] * batch

    def cycle() -> None:
        trio.leader.propose(payloads)
        trio.settle()

    benchmark.extra_info["entries"] = batch
    grouped(benchmark, f"core cycle of {batch}, three voters")(cycle)
    assert trio.applied >= 3 * batch


def bench_idle_turn(benchmark: BenchmarkFixture) -> None:
    """What a tick costs a leader that has nothing to do."""
    trio = Trio()

    def tick() -> None:
        trio.leader.tick()
        trio.settle()

    grouped(benchmark, "a tick of the leader, heartbeats included")(tick)


@pytest.mark.parametrize("question", [question for question in QUESTIONS if question != "heartbeats"])
def bench_micro_question(half: ModuleType, question: str) -> None:  # noqa: F811
    """That each question of `smtpraft bench --only micro` can be asked; its own loops take the time."""
    assert QUESTIONS[question](half)() > 0


def bench_heartbeats_of_an_interval(benchmark: BenchmarkFixture, half: ModuleType) -> None:  # noqa: F811
    """Out to every peer, and every answer read."""
    fields = (3, 1_000_000, 77, 999_000, 12345, 1_000_000, 999_999, 2**63, 10**12)
    answer = half.encode_heartbeat_response(*fields[:8])[12:]

    def beat() -> int:
        for _ in range(PEERS):
            half.encode_heartbeat(*fields)
        return sum(half.decode_heartbeat_response(answer)[0] for _ in range(PEERS))

    assert grouped(benchmark, f"heartbeats for {PEERS} peers and their answers")(beat) == 3 * PEERS
