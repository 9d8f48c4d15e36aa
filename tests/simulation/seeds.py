"""Seeds that once showed something: each is lived again for ever after, with what it showed."""

from __future__ import annotations

from typing import Final

from smtpraft.simulator.campaign import Order

_REMOVED: Final = "reorder partition swizzle isolate-leader crash-recovery slow wall-jump membership"
_HUNG: Final = (
    "delay loss repeat reorder one-way isolate-leader bridge crash crash-persist crash-apply pause slow full drift "
    "wall-jump transfer campaign membership"
)

_FULL: Final = "delay loss crash-recovery power slow full damage drift"
_FULL_AND_GONE: Final = (
    "delay loss one-way crash-persist crash-recovery crash-all torn stall full damage drift wall-jump transfer "
    "forgetful usurp snapshot"
)
_LESS: Final = "crash crash-persist crash-recovery damage power snapshot"
_MISSED: Final = "campaign crash damage drift power snapshot"
_TORN: Final = "crash power damage"
_UNWRITTEN: Final = "one-way isolate-leader stall transfer forgetful membership usurp"

PINNED: Final[tuple[tuple[Order, str], ...]] = (
    (
        Order(3, seconds=20, only=frozenset(_REMOVED.split())),
        "a leader that was removed while its own write was under way stopped: PeerNotFound for its own answer",
    ),
    (
        Order(16, seconds=20, only=frozenset(_HUNG.split())),
        "a leader whose disk hung stopped at the memory of a member that was removed: KeyError",
    ),
    (
        Order(9, seconds=20, only=frozenset({"bridge", "power"})),
        "an answer to a deposed leader, which led again, sent a member back to the first entry",
    ),
    (
        Order(1483, seconds=10, only=frozenset(_LESS.split())),
        "a bug of the simulator: it did not expect a damaged log to come back with less than had been compacted",
    ),
    (
        Order(54, seconds=10, only=frozenset(_MISSED.split())),
        "a bug of the simulator: after a loss of power it missed a sync of the spool, and lost what that had stored",
    ),
    (
        Order(312, seconds=10, only=frozenset(_FULL.split())),
        "a bug of the simulator: it did not expect that a damaged log cannot be put aside on a full disk",
    ),
    (
        Order(902, seconds=10, only=frozenset(_FULL_AND_GONE.split())),
        "the same, where no segment was left and none could be begun",
    ),
    (
        Order(822115440, seconds=10),
        "a bug of the simulator: a leader of an older term, elected late, was taken for the end of a newer one's lease",
    ),
    (
        Order(249, seconds=10, only=frozenset({"crash", "crash-persist", "power", "rot"})),
        "a term that a loss of power had left to the promises alone was forgotten with their file",
    ),
    (
        Order(1904, seconds=10, only=frozenset({"crash", "isolate-leader", "wipe"})),
        "a node whose log did not know yet that its peers had been replaced listened to none of them",
    ),
    (
        Order(1954, seconds=10, only=frozenset(_UNWRITTEN.split())),
        "entries that were replaced in the turn that brought them were acknowledged to their leader, and never written",
    ),
    (
        Order(0, nodes=3, seconds=10, only=frozenset({"wipe", "crash"})),
        "a bug of the simulator: a founder took a wiped node's new directory for the one it was founded with",
    ),
    (
        Order(9, seconds=10, only=frozenset({"repeat", "reorder", "slow", "one-way", "stall"})),
        "a bug of the simulator: a slow disk was still slow to read from when all was to be well again",
    ),
    (
        Order(15, seconds=10, only=frozenset({"crash", "crash-persist", "power", "snapshot"})),
        "a bug of the simulator: it took a sync of the spool that a snapshot had brought for one it had seen before",
    ),
    (
        Order(15, seconds=10, only=frozenset(_TORN.split())),
        "a bug of the simulator: it let a disk lose what nothing vouched for yet, as if that were no torn tail",
    ),
)
"""(what to live, what it showed once)."""
