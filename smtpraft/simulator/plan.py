"""One bad day, drawn from its seed: how large the cluster, how slow the network, which faults and how many of each.

Every seed has few kinds of faults, each often ("swarm testing"): all of them at once would drown one another, and a
cluster that never commits proves nothing. Four days of seven are about what is worst together (`THEMES`) with little
besides, one has one to three kinds of faults and nothing else, the others a part of all.

Every second day is none of those: it is one of the `SHARP`, each in its turn, which are about a narrow window, with
everything else of the day such that the window opens often.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from smtpraft.simulator.timeline import MS

NETWORK: Final = (
    "delay",
    "loss",
    "repeat",
    "reorder",
    "partition",
    "one-way",
    "swizzle",
    "isolate-leader",
    "bridge",
    "stale-leader",
)
PROCESS: Final = (
    "crash",
    "crash-persist",
    "crash-send",
    "crash-apply",
    "crash-recovery",
    "crash-all",
    "pause",
)
DISK: Final = ("power", "torn", "stall", "slow", "full", "eio", "damage")
TIME: Final = ("drift", "wall-jump")
RAFT: Final = ("transfer", "campaign", "forget-leader", "forgetful", "membership", "usurp")
LATE: Final = (
    "snapshot",
    "crawl",
    "stranded",
    "wipe",
    "rot",
    "outrun",
    "late-mail",
    "again",
    "lag",
    "crash-cut",
    "crash-install",
)
"""Drawn apart: all else on a day without them is as it would be if they did not exist."""

KINDS: Final = (*NETWORK, *PROCESS, *DISK, *TIME, *RAFT)
FAULTS: Final = (*KINDS, *LATE)
"""Every kind of fault, by name."""

THEMES: Final = (
    "power torn slow crash crash-persist crash-recovery eio",
    "power torn slow crash crash-persist crash-all",
    "stale-leader isolate-leader transfer reorder pause",
    "forgetful transfer",
    "membership usurp stall isolate-leader transfer",
    "membership stall slow campaign forget-leader",
    "usurp stall crash-persist",
    "damage crash crash-all power usurp",
    "damage crash power",
    "power crash crash-persist crash-recovery",
    "full crash-recovery power slow",
)
"""What is worst together, each for one part of the whole."""

LATE_THEMES: Final = (
    "power crash crash-persist",
    "power crash crash-apply",
    "power torn crash crash-recovery",
    "power crash-all eio",
    "usurp stall",
    "usurp partition swizzle",
    "usurp partition one-way crash",
    "membership usurp stall",
    "membership stall",
    "stranded transfer",
    "forgetful",
    "transfer stale-leader",
    "isolate-leader stale-leader",
    "loss repeat reorder isolate-leader",
    "repeat reorder slow one-way stall",
    "snapshot crawl reorder stale-leader isolate-leader",
    "snapshot power crash crash-persist",
    "damage crash",
    "rot power crash crash-persist",
    "rot damage power usurp",
    "wipe crash isolate-leader",
    "wipe power crash-persist isolate-leader",
    "wipe snapshot usurp",
)
"""The same, drawn apart, with nothing besides."""

Choices = Mapping[str, tuple[int, ...]]

_USURPED: Final[Choices] = {
    "nodes": (5,),
    "lazy_ppm": (600_000, 900_000),
    "inflight_messages": (1, 2),
    "append_bytes": (200,),
    "fault_every_us": (200_000,),
}
_BUSY: Final[Choices] = {"write_every_us": (30_000,)}
_CUT: Final[Choices] = {"keep_entries": (1,), "compact_every": (3,), "segment_bytes": (16 * 1024,)}
_OUTRUN: Final[Choices] = {
    "keep_entries": (1,),
    "compact_every": (1, 3),
    "write_every_us": (60_000, 100_000),
    "apply_us": (20_000,),
    "fault_every_us": (200_000,),
    "inflight_messages": (16,),
}
_DAMAGED: Final[Choices] = {
    "nodes": (5, 7),
    "fault_every_us": (200_000,),
    "vouch_us": (5_000,),
    "rounds": (4,),
}
_AIMED: Final[Choices] = {"aimed_ppm": (50_000,), "nodes": (3, 4, 5)}

SHARP: Final[tuple[tuple[str, Choices], ...]] = (
    ("usurp stall", {**_USURPED, **_BUSY}),
    ("power crash crash-persist", {"nodes": (3,)}),
    ("snapshot crawl outrun", {"nodes": (3,), **_OUTRUN}),
    ("damage crash", _DAMAGED),
    ("membership usurp stall", {"nodes": (3, 4, 5)}),
    ("power crash again", {"nodes": (3,), **_BUSY}),
    ("lag", {"nodes": (3, 5), "lease_reads": (0, 0, 1), "rounds": (1,)}),
    ("late-mail", {"nodes": (3, 4, 5), "write_every_us": (200_000,)}),
    ("power crash-cut", {**_AIMED, **_CUT, **_BUSY}),
    ("transfer stale-leader", {"nodes": (3, 4, 5), "lease_reads": (1,)}),
    ("partition swizzle isolate-leader transfer", {"nodes": (3, 4, 5), "rounds": (4,)}),
    ("snapshot outrun swizzle crash-install", {**_AIMED, **_CUT, "nodes": (3,)}),
    ("usurp stall", {**_USURPED, **_BUSY}),
    ("power crash crash-persist", {"nodes": (3,)}),
    ("snapshot crawl outrun", {"nodes": (3,), **_OUTRUN}),
    ("damage crash", _DAMAGED),
    ("membership stall isolate-leader", {"nodes": (3, 4, 5)}),
    ("power crash again", {"nodes": (3,), **_BUSY}),
    ("usurp stall transfer slow", {"nodes": (3, 4, 5)}),
    ("power torn crash eio", {**_AIMED, **_BUSY}),
    ("power crash crash-apply", {**_AIMED, **_CUT, **_BUSY}),
    ("forgetful", {"nodes": (3, 5), "lease_reads": (1,)}),
    ("wipe crash isolate-leader", {"nodes": (3, 5)}),
)
"""What opens one window, and what the day is like besides: its values, of which one is drawn. The narrowest stand
here twice."""

LEASES: Final = frozenset({"stale-leader", "forgetful"})
"""What is worst for leases to read."""

MODIFIERS: Final = frozenset({"power", "torn", "delay"})
"""What changes how others work and does nothing alone."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The day. Durations in microseconds, rates a million operations or in mean microseconds between two."""

    seed: int
    nodes: int
    seconds: int
    faults: frozenset[str]
    tick_us: int
    election_ticks: int
    heartbeat_ticks: int
    delay_us: int
    jitter_us: int
    loss_ppm: int
    repeat_ppm: int
    disk_us: int
    apply_us: int
    write_every_us: int
    read_every_us: int
    fault_every_us: int
    aimed_ppm: int
    """Of the operations that a crash is aimed at, how many in a million meet one."""
    lazy_ppm: int
    """How often a node takes more in before it does something."""
    vouch_us: int
    """An idle log says so long after its last write that this one was synced."""
    segment_bytes: int
    keep_entries: int
    compact_every: int
    cache_bytes: int
    lease_reads: bool
    rounds: int
    """How often the day breaks and is healed again."""
    inflight_messages: int
    append_bytes: int
    piece_bytes: int
    """Of entries in one write of the log: more is written in pieces."""

    @classmethod
    def draw(
        cls, seed: int, *, nodes: int | None = None, seconds: int = 60, only: frozenset[str] | None = None
    ) -> Plan:
        """Return the plan of `seed`; `nodes` and `only` (kinds of faults) override what it would be."""
        draw = Random(seed)
        size = draw.choice((1, 2, 3, 3, 3, 3, 3, 3, 4, 5, 5, 5, 6, 7))
        theme: list[str] = []
        match draw.choice(("theme", "theme", "theme", "theme", "few", "many", "many")):
            case "theme":
                theme = draw.choice(THEMES).split()
                share = draw.choice((0.0, 0.0, 0.05, 0.15))
            case "few":
                theme = draw.sample(KINDS, draw.choice((1, 1, 2, 3)))
                share = 0.0
            case _:
                share = draw.choice((0.15, 0.3, 0.5))
        drawn = frozenset(fault for fault in KINDS if draw.random() < share).union(theme)
        if Random(-seed - 1).random() < 0.25:
            drawn = drawn.union({"snapshot"})
        late = Random(f"late {seed}")
        if late.random() < 0.6:
            theme = late.choice(LATE_THEMES).split()
            drawn = frozenset(theme)
        sharp: Choices = {}
        if only is None and seed % 2:
            kinds, sharp = SHARP[seed // 2 % len(SHARP)]
            drawn = frozenset(kinds.split())
        faults = drawn if only is None else only
        # Some as the product has it by default, most with coarser ticks: that is more days an hour.
        tick_ms, election_ticks, heartbeat_ticks = draw.choice(
            ((10, 15, 5), (25, 6, 2), *[(50, 5, 2)] * 4, *[(50, 8, 2)] * 2, *[(100, 5, 1)] * 4)
        )
        slow = "delay" in faults
        day = cls(
            seed=seed,
            nodes=nodes or size,
            seconds=seconds,
            faults=faults,
            tick_us=tick_ms * MS,
            election_ticks=election_ticks,
            heartbeat_ticks=heartbeat_ticks,
            delay_us=draw.choice((200, 1_000, 5_000)) if not slow else draw.choice((10_000, 25_000)),
            jitter_us=draw.choice((100, 1_000, 5_000)) if not slow else draw.choice((20_000, 100_000)),
            loss_ppm=draw.choice((5_000, 50_000, 200_000)) if "loss" in faults else 0,
            repeat_ppm=draw.choice((10_000, 100_000)) if "repeat" in faults else 0,
            disk_us=draw.choice((200, 2_000, 10_000)) if "slow" not in faults else draw.choice((30_000, 60_000)),
            apply_us=draw.choice((20_000, 100_000, 200_000)),
            write_every_us=draw.choice((30_000, 100_000, 200_000)),
            read_every_us=draw.choice((100_000, 200_000, 400_000)),
            fault_every_us=draw.choice((200_000, 500_000, 1_000_000)),
            aimed_ppm=draw.choice((5_000, 20_000, 50_000)),
            lazy_ppm=draw.choice((0, 50_000, 300_000, 600_000)),
            vouch_us=draw.choice((5_000, 50_000, 500_000)),
            segment_bytes=draw.choice((16, 32, 64, 256)) * 1024,
            keep_entries=min(draw.choice((3, 20, 100)), 3 if "snapshot" in faults else 100),
            compact_every=min(draw.choice((10, 30, 100)), 10 if "snapshot" in faults else 100),
            cache_bytes=draw.choice((2_000, 20_000, 1_000_000)),
            lease_reads=draw.random() < (0.3 if LEASES.isdisjoint(theme) else 0.8),
            rounds=min(draw.choice((1, 2, 4)), max(1, seconds // 5)),
            inflight_messages=draw.choice((1, 2, 4, 16)),
            append_bytes=draw.choice((200, 1_000, 4_000)),
            piece_bytes=Random(f"pieces {seed}").choice((150, 600, 2_000, 10_000)),
        )
        wanted = {name: late.choice(values) for name, values in sharp.items()}
        if "lease_reads" in wanted:
            wanted["lease_reads"] = wanted["lease_reads"] == 1
        if nodes is not None:
            wanted.pop("nodes", None)
        if "rounds" in wanted:
            wanted["rounds"] = min(wanted["rounds"], max(1, seconds // 5))
        return replace(day, **wanted)  # type: ignore[arg-type]

    def has(self, fault: str) -> bool:
        """Does this kind of fault happen on this day?"""
        return fault in self.faults

    def __str__(self) -> str:
        kinds = ",".join(fault for fault in FAULTS if fault in self.faults) or "none"
        return f"seed {self.seed}: {self.nodes} nodes, {self.seconds} s, faults {kinds}"
