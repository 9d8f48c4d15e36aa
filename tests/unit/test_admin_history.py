"""The last minutes in small numbers: slots, their merging, quantiles of histograms."""

from __future__ import annotations

from smtpraft.admin.history import SLOTS, History, Sample, Slot, quantile

BOUNDS = (1.0, 2.0, 4.0)


def test_a_quantile_lies_within_its_bucket() -> None:
    assert quantile({}, BOUNDS, 0.5) is None
    assert quantile({1: 10}, BOUNDS, 0.5) == 1.5
    assert quantile({0: 50, 2: 50}, BOUNDS, 0.99) == 2 + 2 * (99 - 50) / 50
    assert quantile({3: 1}, BOUNDS, 0.5) == 4.0, "above every bound: at least the last one"


def test_only_differences_count() -> None:
    samples = [Sample(10, 5, 1, (1, 0), (0, 0)), Sample(13, 9, 1, (1, 3), (2, 0))]
    numbers = iter(samples)
    history = History(lambda: next(numbers))
    history.look()
    (slot,) = history.slots
    assert (slot.accepted, slot.delivered, slot.failed, slot.acks, slot.syncs) == (3, 4, 0, {1: 3}, {0: 2})


def test_slots_travel_and_are_laid_on_each_other() -> None:
    slot = Slot(7, 3, 2, 1, {0: 2, 5: 1})
    other = Slot.unpacked(slot.packed())
    assert (other.number, other.accepted, other.acks) == (7, 3, {0: 2, 5: 1})
    other.merge(slot)
    assert (other.accepted, other.delivered, other.failed, other.acks) == (6, 4, 2, {0: 4, 5: 2})


def test_five_minutes_of_a_busy_node_fit_one_answer() -> None:
    """`requests` carries 12 KiB."""
    import msgspec

    acks = dict.fromkeys(range(12), 9000)
    busy = [Slot(600_000_000 + number, 60_000, 60_000, 300, acks).packed() for number in range(SLOTS + 1)]
    assert len(msgspec.msgpack.encode(busy)) < 11 * 1024
