"""The in-memory log, on both twins."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Final

import pytest

HEADER: Final = 36


def block(half: ModuleType, first: int, *terms: int, payload: bytes = b"x") -> bytes:
    """Return a block of one entry for each of `terms`, from index `first` on."""
    return b"".join(half.encode_entries(term, index, 0, 0, [payload]) for index, term in enumerate(terms, first))


def log_of(half: ModuleType, *terms: int, prev: tuple[int, int] = (0, 0)) -> Any:
    """Return a log of one entry, in a block of its own, for each of `terms`."""
    log = half.Log(*prev)
    for index, term in enumerate(terms, prev[0] + 1):
        log.append_block(block(half, index, term))
    return log


def terms(log: Any) -> list[int]:
    return [log.term(index) for index in range(log.first_index, log.last_index + 1)]


def contents(log: Any) -> bytes:
    """Return all bytes in memory; checks that the spans and the sizes say the same."""
    joined = b"".join(log.spans(log.cached_first, log.last_index))
    assert len(joined) == log.cached_bytes
    assert len(joined) == log.size_bytes(log.cached_first, log.last_index)
    return joined


# --------------------------------------------------------------------------------------------------------------- facts


def test_an_empty_log_begins_after_its_prev(half: ModuleType) -> None:
    for prev_index, prev_term in ((0, 0), (7, 0), (7, 3), (half.INDEX_MAX, 2**64 - 1)):
        log = half.Log(prev_index, prev_term)
        assert (log.prev_index, log.prev_term) == (prev_index, prev_term)
        assert (log.first_index, log.last_index, log.last_term) == (prev_index + 1, prev_index, prev_term)
        assert (log.cached_first, log.cached_bytes) == (prev_index + 1, 0)
        assert log.term(prev_index) == prev_term


def test_only_an_entry_has_a_term(half: ModuleType) -> None:
    with pytest.raises(ValueError, match="before the first"):
        half.Log(0, 1)
    with pytest.raises(ValueError, match="before the first"):
        half.Log().restore(0, 1)
    with pytest.raises(OverflowError):
        half.Log(half.INDEX_MAX + 1, 1)


def test_facts_are_read_only(half: ModuleType) -> None:
    log = half.Log()
    for name in ("prev_index", "prev_term", "first_index", "last_index", "last_term", "cached_first", "cached_bytes"):
        with pytest.raises(AttributeError):
            setattr(log, name, 1)


# -------------------------------------------------------------------------------------------------------------- append


def test_append_returns_the_final_bytes(half: ModuleType) -> None:
    log = half.Log()
    first = log.append(1, 5, half.ENTRY_NORMAL, [b"a", b"bb"])
    second = log.append(2, 6, half.ENTRY_CONF_CHANGE, [b"ccc"])
    assert first == half.encode_entries(1, 1, 5, 0, [b"a", b"bb"])
    assert second == half.encode_entries(2, 3, 6, 1, [b"ccc"])
    assert contents(log) == first + second
    assert log.entries(1, 3) == [(1, 1, 5, 0, b"a"), (2, 1, 5, 0, b"bb"), (3, 2, 6, 1, b"ccc")]
    assert (log.last_index, log.last_term) == (3, 2)


def test_append_refuses_a_lower_term_and_changes_nothing(half: ModuleType) -> None:
    log = log_of(half, 1, 3)
    with pytest.raises(ValueError, match="term 2 after 3"):
        log.append(2, 0, 0, [b"x"])
    with pytest.raises(ValueError, match="at least one"):
        log.append(3, 0, 0, [])
    with pytest.raises(TypeError):
        log.append(3, 0, 0, [b"fine", "text"])
    with pytest.raises(ValueError, match="larger"):
        log.append(3, 0, 0, [b"fine", bytes(half.ENTRY_BYTES_MAX)])
    assert terms(log) == [1, 3]
    assert contents(log) == block(half, 1, 1, 3)
    with pytest.raises(ValueError, match="term 2 after 3"):
        half.Log(5, 3).append(2, 0, 0, [b"x"])


def test_append_names_a_lower_term_before_it_looks_at_what_to_append(half: ModuleType) -> None:
    log = half.Log()
    log.append(1, 0, 0, [b""])
    with pytest.raises(ValueError, match="term 0 after 1"):
        log.append(0, 0, 0, None)


def test_append_stops_at_the_last_index(half: ModuleType) -> None:
    log = half.Log(half.INDEX_MAX - 1, 1)
    with pytest.raises(OverflowError):
        log.append(1, 0, 0, [b"", b""])
    log.append(1, 0, 0, [b""])
    with pytest.raises(OverflowError):
        log.append(1, 0, 0, [b""])
    assert log.last_index == half.INDEX_MAX


def test_a_follower_ends_with_the_bytes_of_its_leader(half: ModuleType) -> None:
    leader, follower = half.Log(), half.Log()
    for term in range(1, 50):
        sent = leader.append(term // 5, term, 0, [bytes([term]) * size for size in range(term % 7 + 1)])
        assert follower.match(sent)[0] == sent_first(half, sent)
        follower.append_block(sent)
    assert contents(follower) == contents(leader)
    assert terms(follower) == terms(leader)


def sent_first(half: ModuleType, sent: bytes) -> int:
    first: int = half.block_range(sent)[0]
    return first


def test_a_block_is_kept_without_a_copy(half: ModuleType) -> None:
    log = half.Log()
    sent = block(half, 1, 1, 1)
    log.append_block(sent)
    [span] = log.spans(1, 2)
    assert span.obj is sent
    assert span.readonly


# --------------------------------------------------------------------------------------------------------------- match


@pytest.mark.parametrize(
    ("ours", "first", "theirs", "expected"),
    [
        ((), 1, (1,), (1, 1)),
        ((1, 2, 3), 1, (1, 2, 3), (0, 3)),
        ((1, 2, 3), 2, (2,), (0, 2)),
        ((1, 2, 3), 2, (2, 3, 4, 4), (4, 5)),
        ((1, 2, 3), 4, (4, 4), (4, 5)),
        ((1, 2, 3), 1, (4, 4), (1, 2)),
        ((1, 2, 3), 2, (1, 4, 4), (2, 4)),
        ((1, 2, 3), 3, (4, 4), (3, 4)),
        ((1, 2, 3), 9, (4,), (9, 9)),
    ],
)
def test_match_finds_the_first_entry_that_is_new(
    half: ModuleType, ours: tuple[int, ...], first: int, theirs: tuple[int, ...], expected: tuple[int, int]
) -> None:
    """etcd's findConflict: a missing entry is a conflict too."""
    log = log_of(half, *ours)
    assert log.match(block(half, first, *theirs)) == expected
    assert terms(log) == list(ours)


def test_what_was_compacted_counts_as_matching(half: ModuleType) -> None:
    log = log_of(half, 5, 5, prev=(10, 4))
    assert log.match(block(half, 8, 3, 3, 3)) == (0, 10)
    assert log.match(block(half, 9, 4, 4, 5, 5)) == (0, 12)
    assert log.match(block(half, 10, 4, 5, 6)) == (12, 12)


def test_match_verifies(half: ModuleType) -> None:
    log = log_of(half, 1)
    for bad in (b"", block(half, 1, 1)[:-1], block(half, 1, 1) + block(half, 3, 1)):
        with pytest.raises(half.CorruptEntry):
            log.match(bad)
        with pytest.raises(half.CorruptEntry):
            log.append_block(bad)


def test_append_block_verifies_although_another_block_matched(half: ModuleType) -> None:
    log = half.Log()
    good = block(half, 1, 1, 1)
    bad = bytearray(good)
    bad[-1] ^= 1
    log.match(good)
    with pytest.raises(half.CorruptEntry):
        log.append_block(bytes(bad))
    log.append_block(good)
    assert terms(log) == [1, 1]


def test_a_mutable_block_is_looked_at_again(half: ModuleType) -> None:
    log = half.Log()
    given = bytearray(block(half, 1, 1, 1))
    assert log.match(given) == (1, 2)
    given[-1] ^= 1
    with pytest.raises(half.CorruptEntry):
        log.append_block(given)


# -------------------------------------------------------------------------------------------------------- append_block


@pytest.mark.parametrize(
    ("ours", "first", "theirs", "from_index", "expected"),
    [
        ((), 1, (1, 2), 0, (1, 2)),
        ((1, 1), 3, (2, 2), 0, (1, 1, 2, 2)),
        ((1, 1, 1), 2, (2,), 0, (1, 2)),
        ((1, 1, 1), 1, (3, 3), 0, (3, 3)),
        ((1, 1, 1), 2, (1, 1, 2, 2), 4, (1, 1, 1, 2, 2)),
        ((1, 1, 1), 2, (1, 2, 2), 3, (1, 1, 2, 2)),
        ((1, 1, 1), 2, (1, 2, 2), 1, (1, 1, 2, 2)),
        ((1, 1, 1), 1, (1, 1, 1), 3, (1, 1, 1)),
    ],
)
def test_append_block_replaces_what_conflicts(
    half: ModuleType,
    ours: tuple[int, ...],
    first: int,
    theirs: tuple[int, ...],
    from_index: int,
    expected: tuple[int, ...],
) -> None:
    """Raft Figure 2, AppendEntries 3 and 4."""
    for given in (bytes, bytearray, memoryview):
        log = half.Log()
        if ours:
            log.append_block(block(half, 1, *ours))  # one block, to be cut
        log.append_block(given(block(half, first, *theirs)), from_index)
        assert terms(log) == list(expected)
        assert contents(log) == block(half, 1, *expected)


@pytest.mark.parametrize(
    ("first", "theirs", "from_index", "reason"),
    [
        (14, (9,), 0, "gap"),
        (12, (9, 9, 9), 14, "gap"),
        (10, (5, 5), 0, "compacted"),
        (9, (4, 4, 5), 10, "compacted"),
        (12, (4,), 0, "term"),
        (13, (4, 9), 0, "term"),
        (11, (4, 4, 9), 12, "term"),
        (12, (6, 6), 14, "after the block"),
    ],
)
def test_append_block_refuses_what_does_not_fit_and_changes_nothing(
    half: ModuleType, first: int, theirs: tuple[int, ...], from_index: int, reason: str
) -> None:
    log = log_of(half, 5, 5, prev=(10, 4))
    given = block(half, first, *theirs)
    log.match(given)
    before = contents(log)
    with pytest.raises(ValueError, match=reason):
        log.append_block(given, from_index)
    assert contents(log) == before
    assert terms(log) == [5, 5]


def test_a_block_may_begin_below_the_log_if_only_its_end_is_taken(half: ModuleType) -> None:
    log = log_of(half, 5, prev=(10, 4))
    log.append_block(block(half, 9, 4, 4, 5, 6), 12)
    assert terms(log) == [5, 6]
    assert contents(log) == block(half, 11, 5, 6)


# ------------------------------------------------------------------------------------------------- terms and conflicts


def test_terms_are_known_from_prev_to_last(half: ModuleType) -> None:
    log = log_of(half, 5, 6, prev=(10, 4))
    assert [log.term(index) for index in (10, 11, 12)] == [4, 5, 6]
    with pytest.raises(half.Compacted):
        log.term(9)
    with pytest.raises(half.Unavailable):
        log.term(13)
    with pytest.raises(half.Unavailable):
        log.term(2**64 - 1)


def by_hand(log: Any, index: int, term: int) -> tuple[int, int]:
    """The reference implementation's findConflictByTerm, one step at a time."""
    while index > 0:
        try:
            if log.term(index) <= term:
                return index, log.term(index)
        except LookupError:
            return index, 0
        index -= 1
    return 0, 0


@pytest.mark.parametrize("prev", [(0, 0), (1, 1), (10, 3)])
def test_conflicts_by_term_are_found_as_the_reference_finds_them(half: ModuleType, prev: tuple[int, int]) -> None:
    log = log_of(half, 3, 3, 4, 7, 7, 7, 9, prev=prev)
    for index in range(prev[0] + 10):
        for term in range(11):
            assert log.find_conflict_by_term(index, term) == by_hand(log, index, term), (index, term)


# --------------------------------------------------------------------------------------------------- sizes and offsets


def test_sizes_and_offsets_are_those_of_the_records(half: ModuleType) -> None:
    log = half.Log()
    for size in (0, 5, 100, 1, 2):
        log.append(1, 0, 0, [bytes(size)])
    assert log.size_bytes(1, 5) == 5 * HEADER + 108
    assert log.size_bytes(2, 3) == 2 * HEADER + 105
    assert log.size_bytes(3, 2) == 0
    assert log.size_bytes(6, 5) == 0
    assert log.offset(6) - log.offset(1) == log.size_bytes(1, 5)
    assert log.offset(4) - log.offset(3) == HEADER + 100
    log.compact(2)
    log.evict(0)
    assert log.size_bytes(3, 4) == 2 * HEADER + 101


def test_offsets_stay_when_the_log_is_cut(half: ModuleType) -> None:
    log = half.Log()
    log.append(1, 0, 0, [bytes(size) for size in range(20)])
    offset = log.offset(15)
    log.compact(10)
    assert log.offset(15) == offset
    log.truncate(16)
    assert log.offset(15) == offset
    assert log.offset(16) == offset + log.size_bytes(15, 15)
    end = log.offset(16)
    log.restore(100, 2)
    assert log.offset(101) == end


def test_sizes_and_offsets_outside_the_log_are_refused(half: ModuleType) -> None:
    log = log_of(half, 5, 6, prev=(10, 4))
    for lo, hi, error in (
        (10, 11, half.Compacted),
        (0, 0, half.Compacted),
        (11, 13, half.Unavailable),
        (14, 13, half.Unavailable),
        (12, 10, ValueError),
        (2**64 - 1, 0, ValueError),
        (11, 2**64 - 1, half.Unavailable),
    ):
        for ask in (log.size_bytes, log.spans, log.entries, lambda lo, hi: log.upto_bytes(lo, hi, 1)):
            with pytest.raises(error):
                ask(lo, hi)
    for index, error in ((10, half.Compacted), (14, half.Unavailable), (2**64 - 1, half.Unavailable)):
        with pytest.raises(error):
            log.offset(index)


def test_as_many_entries_as_fit_and_one_at_least(half: ModuleType) -> None:
    log = half.Log(4, 1)
    log.append(1, 0, 0, [bytes(64)] * 10)  # 100 bytes each
    log.compact(6)
    assert log.upto_bytes(7, 14, 0) == 7
    assert log.upto_bytes(7, 14, 100) == 7
    assert log.upto_bytes(7, 14, 199) == 7
    assert log.upto_bytes(7, 14, 200) == 8
    assert log.upto_bytes(9, 14, 299) == 10
    assert log.upto_bytes(9, 11, 1000) == 11
    assert log.upto_bytes(7, 14, 2**64 - 1) == 14
    for index in range(7, 15):
        assert log.upto_bytes(index, 14, 250) == min(14, index + 1)
    with pytest.raises(ValueError, match="empty"):
        log.upto_bytes(8, 7, 100)


# ----------------------------------------------------------------------------------------------------- bytes in memory


def test_spans_cover_exactly_what_was_asked_for(half: ModuleType) -> None:
    log = half.Log()
    everything = b"".join(log.append(1, 0, 0, [bytes([count])] * count) for count in (1, 3, 2, 4, 1))
    start = log.offset(1)
    for lo in range(1, 12):
        for hi in range(lo - 1, 12):
            expected = everything[log.offset(lo) - start : log.offset(hi + 1) - start]
            spans = log.spans(lo, hi)
            assert b"".join(spans) == expected
            assert all(spans), "no empty spans"
            decoded = log.entries(lo, hi)
            assert decoded == (half.decode_entries(expected) if expected else [])


def test_spans_outlive_every_change(half: ModuleType) -> None:
    log = log_of(half, 1, 1, 1)
    expected = contents(log)
    spans = log.spans(1, 3)
    log.truncate(2)
    log.append(2, 0, 0, [b"other"])
    log.evict(0)
    log.restore(9, 9)
    assert b"".join(spans) == expected


def test_evict_forgets_the_oldest_bytes_but_no_terms(half: ModuleType) -> None:
    log = log_of(half, 1, 2, 3, 4)
    size = HEADER + 1
    log.evict(4 * size)
    assert log.cached_first == 1
    log.evict(3 * size)
    assert (log.cached_first, log.cached_bytes) == (2, 3 * size)
    log.evict(2 * size - 1)
    assert (log.cached_first, log.cached_bytes) == (4, size)
    assert terms(log) == [1, 2, 3, 4]
    assert log.size_bytes(1, 4) == 4 * size
    for ask in (log.spans, log.entries):
        with pytest.raises(half.NotCached):
            ask(3, 4)
        assert ask(4, 4)
    log.evict(0)
    assert (log.cached_first, log.cached_bytes) == (5, 0)
    log.append(4, 0, 0, [b"x"])
    assert contents(log) == block(half, 5, 4)


def test_evict_keeps_what_it_is_told_to_keep(half: ModuleType) -> None:
    log = log_of(half, 1, 2, 3, 4)
    log.append_block(block(half, 5, 5, 5, 5))
    log.evict(0, keep_from=3)
    assert log.cached_first == 3
    log.evict(0, keep_from=6)
    assert log.cached_first == 5, "a block is kept whole"
    log.evict(0, keep_from=8)
    assert log.cached_first == 8


# ------------------------------------------------------------------------------------------------------- the two ends


def test_truncate_drops_the_end(half: ModuleType) -> None:
    for from_index, expected in ((1, ()), (2, (1,)), (5, (1, 1, 1, 2)), (6, (1, 1, 1, 2, 2)), (99, (1, 1, 1, 2, 2))):
        log = half.Log()
        log.append_block(block(half, 1, 1, 1, 1))
        log.append_block(block(half, 4, 2, 2))
        log.truncate(from_index)
        assert terms(log) == list(expected)
        assert contents(log) == block(half, 1, *expected)
    log = log_of(half, 5, prev=(10, 4))
    for from_index in (0, 9, 10):
        with pytest.raises(half.Compacted):
            log.truncate(from_index)


def test_truncate_into_evicted_entries_leaves_no_bytes(half: ModuleType) -> None:
    log = log_of(half, 1, 2, 3, 4)
    log.evict(HEADER + 1)
    log.truncate(3)
    assert (log.cached_first, log.cached_bytes) == (3, 0)
    log.append(3, 0, 0, [b"x"])
    assert contents(log) == block(half, 3, 3)


def test_compact_drops_the_beginning(half: ModuleType) -> None:
    for to_index in range(6):
        log = half.Log()
        log.append_block(block(half, 1, 1, 1, 1))
        log.append_block(block(half, 4, 2, 2))
        log.compact(to_index)
        assert (log.prev_index, log.prev_term) == (to_index, (0, 1, 1, 1, 2, 2)[to_index])
        assert (log.first_index, log.last_index, log.last_term) == (to_index + 1, 5, 2)
        assert terms(log) == [1, 1, 1, 2, 2][to_index:]
        assert log.cached_first == to_index + 1
        assert contents(log) == block(half, 1, 1, 1, 1, 2, 2)[to_index * (HEADER + 1) :]
        log.compact(to_index)
        if to_index:
            with pytest.raises(half.Compacted):
                log.compact(to_index - 1)
        with pytest.raises(half.Unavailable):
            log.compact(6)


def test_compact_below_and_above_what_is_in_memory(half: ModuleType) -> None:
    log = log_of(half, 1, 2, 3, 4, 5)
    log.evict(2 * (HEADER + 1))
    log.compact(2)
    assert (log.first_index, log.cached_first) == (3, 4)
    log.compact(3)
    assert (log.first_index, log.cached_first) == (4, 4)
    log.compact(4)
    assert (log.first_index, log.cached_first) == (5, 5)
    assert contents(log) == block(half, 5, 5)


def test_cut_blocks_do_not_hold_on_to_the_memory_of_what_was_dropped(half: ModuleType) -> None:
    log = half.Log()
    log.append(1, 0, 0, [bytes(1000)] * 10)
    log.compact(9)
    assert len(log.spans(10, 10)[0].obj) == HEADER + 1000
    log.append(1, 0, 0, [bytes(1000)] * 10)
    log.truncate(12)
    assert [len(span.obj) for span in log.spans(10, 11)] == [HEADER + 1000] * 2


def test_restore_empties_the_log(half: ModuleType) -> None:
    for index, term in ((0, 0), (2, 2), (100, 7)):
        log = log_of(half, 1, 2, 3)
        log.restore(index, term)
        assert (log.prev_index, log.prev_term, log.last_index, log.last_term) == (index, term, index, term)
        assert (log.cached_first, log.cached_bytes) == (index + 1, 0)
        log.append_block(block(half, index + 1, 8))
        assert contents(log) == block(half, index + 1, 8)


def test_a_log_lives_long(half: ModuleType) -> None:
    """Append, evict and compact go round for a while, as in a node that runs."""
    log = half.Log()
    for turn in range(1, 3000):
        log.append(turn // 100, turn, 0, [turn.to_bytes(4, "big")] * (turn % 4 + 1))
        log.evict(2000, keep_from=max(0, log.last_index - 20))
        if turn % 50 == 0:
            log.compact(log.last_index - 60)
            assert log.last_index - log.first_index == 59
        if turn % 170 == 0:
            log.truncate(log.last_index - 5)
        index, term, stamp, _, payload = log.entries(log.last_index, log.last_index)[0]
        assert (index, term) == (log.last_index, log.last_term)
        assert stamp == int.from_bytes(payload, "big")
        assert log.cached_first >= log.first_index
        assert log.cached_bytes <= 2000
    contents(log)


@pytest.mark.parametrize("bad", [-1, 2**64])
def test_numbers_beyond_a_u64_overflow(half: ModuleType, bad: int) -> None:
    log = log_of(half, 1, 2)
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (half.Log, (bad, 0)),
        (half.Log, (1, bad)),
        (log.append, (bad, 0, 0, [b""])),
        (log.append, (3, bad, 0, [b""])),
        (log.append, (3, 0, bad, [b""])),
        (log.append_block, (block(half, 3, 3), bad)),
        (log.term, (bad,)),
        (log.size_bytes, (bad, 1)),
        (log.size_bytes, (1, bad)),
        (log.offset, (bad,)),
        (log.upto_bytes, (1, 2, bad)),
        (log.spans, (1, bad)),
        (log.entries, (bad, 2)),
        (log.find_conflict_by_term, (bad, 1)),
        (log.find_conflict_by_term, (1, bad)),
        (log.truncate, (bad,)),
        (log.compact, (bad,)),
        (log.evict, (bad,)),
        (log.evict, (0, bad)),
        (log.restore, (bad, 1)),
        (log.restore, (1, bad)),
    ]
    for call, arguments in calls:
        with pytest.raises(OverflowError):
            call(*arguments)
        for position, argument in enumerate(arguments):
            if argument == bad:
                with pytest.raises(TypeError):
                    call(*arguments[:position], 1.5, *arguments[position + 1 :])
    assert terms(log) == [1, 2]
    assert contents(log) == block(half, 1, 1, 2)
