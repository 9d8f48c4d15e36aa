"""The judge of histories says yes to what some order explains, and no to everything else."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest

from smtpraft.simulator.linearizability import (
    ABSENT,
    Delete,
    Get,
    KeyState,
    KeyValueCall,
    KeyValueModel,
    Operation,
    Put,
    Undecided,
    check,
)

MODEL = KeyValueModel()
Op = Operation[KeyValueCall]


def op(call: KeyValueCall, called_at: float, returned_at: float | None, key: str = "k") -> Op:
    return Operation(key, call, called_at, returned_at)


def linearizable(*history: Op) -> bool:
    return check(MODEL, history) is None


def test_operations_that_do_not_overlap_have_one_order() -> None:
    put = op(Put(b"a", 5), 0, 1)
    assert linearizable(put, op(Get(b"a", 5), 2, 3))
    assert not linearizable(put, op(Get(None, ABSENT), 2, 3))
    assert linearizable(op(Get(None, ABSENT), 0, 1), op(Put(b"a", 5), 2, 3))


def test_a_read_beside_a_write_may_see_either() -> None:
    assert linearizable(op(Put(b"a", 5), 0, 3), op(Get(b"a", 5), 1, 2))
    assert linearizable(op(Put(b"a", 5), 0, 3), op(Get(None, ABSENT), 1, 2))


def test_a_read_never_goes_back() -> None:
    """Herlihy and Wing: what one reader saw while the write was under way, the next one must see too."""
    write = op(Put(b"b", 6), 1, 9)
    before = op(Put(b"a", 5), 0, 0.5)
    assert not linearizable(before, write, op(Get(b"b", 6), 2, 3), op(Get(b"a", 5), 4, 5))
    assert linearizable(before, write, op(Get(b"a", 5), 2, 3), op(Get(b"b", 6), 4, 5))


def test_a_revision_is_a_moment_not_a_value() -> None:
    """The same bytes written twice are two values (the ABA problem)."""
    writes = [op(Put(b"a", 5), 0, 1), op(Put(b"b", 6), 2, 3), op(Put(b"a", 7), 4, 5)]
    assert linearizable(*writes, op(Get(b"a", 7), 6, 7))
    assert not linearizable(*writes, op(Get(b"a", 5), 6, 7))
    assert not linearizable(op(Put(b"a", 6), 0, 1), op(Put(b"b", 5), 2, 3)), "revisions grow"


def test_of_two_comparisons_with_one_revision_one_wins() -> None:
    first = op(Put(b"a", 5), 0, 1)
    one = op(Put(b"b", 6, expected=5), 2, 9)
    other_won = op(Put(b"c", 7, expected=5), 2, 9)
    other_lost = op(Put(b"c", 6, expected=5, written=False), 2, 9)
    assert linearizable(first, one, other_lost)
    assert not linearizable(first, one, other_won), "a lost update"
    assert not linearizable(first, op(Put(b"b", 5, expected=5, written=False), 2, 3)), "refused without a reason"


def test_what_nobody_knows_may_come_late_or_never() -> None:
    first, unknown = op(Put(b"a", 5), 0, 1), op(Put(b"x", None), 2, None)
    never, came = op(Get(b"a", 5), 3, 4), op(Get(b"x", 8), 5, 6)
    assert linearizable(first, unknown, never)
    assert linearizable(first, unknown, never, came)
    assert not linearizable(first, unknown, op(Get(b"x", 8), 3, 4), op(Get(b"a", 5), 5, 6)), "it came, and went"
    assert not linearizable(first, unknown, op(Get(b"x", 5), 3, 4)), "at the revision of another value"
    assert not linearizable(first, came, op(Put(b"x", None), 7, None)), "before it was asked for"


def test_a_deletion_is_a_write() -> None:
    first = op(Put(b"a", 5), 0, 1)
    assert linearizable(first, op(Delete(5), 2, 3), op(Get(None, ABSENT), 4, 5), op(Delete(ABSENT), 6, 7))
    assert not linearizable(first, op(Delete(5), 2, 3), op(Get(b"a", 5), 4, 5))
    assert not linearizable(first, op(Delete(5, expected=4), 2, 3)), "compared with what was not there"
    assert linearizable(first, op(Delete(5, expected=4, written=False), 2, 3))
    assert linearizable(first, op(Delete(None), 2, None), op(Get(None, ABSENT), 4, 5))


def test_keys_are_checked_apart_and_the_bad_one_is_named() -> None:
    good = [op(Put(b"a", 5), 0, 1, "good"), op(Get(b"a", 5), 2, 3, "good")]
    bad = [op(Put(b"a", 6), 0, 1, "bad"), op(Put(b"z", 9), 1.5, 9, "bad"), op(Get(None, ABSENT), 2, 3, "bad")]
    violation = check(MODEL, [*good, *bad])
    assert violation is not None
    assert (violation.key, violation.stuck) == ("bad", bad[2])
    assert "'bad'" in str(violation)
    assert "Get(value=None, revision=0)" in str(violation)


def test_a_return_before_the_call_is_no_history() -> None:
    with pytest.raises(ValueError, match="before it was called"):
        check(MODEL, [op(Put(b"a", 5), 2, 1)])


def _explained(history: Sequence[Op]) -> bool:
    """Try every order and, for unknown outcomes, every choice of which took effect: slow, and plainly right."""
    known = [operation for operation in history if operation.returned_at is not None]
    unknown = [operation for operation in history if operation.returned_at is None]
    for count in range(len(unknown) + 1):
        for took_effect in itertools.combinations(unknown, count):
            for order in itertools.permutations([*known, *took_effect]):
                if _in_time(order) and _possible(order):
                    return True
    return False


def _in_time(order: Sequence[Op]) -> bool:
    return not any(
        later.returned_at is not None and later.returned_at < earlier.called_at
        for place, earlier in enumerate(order)
        for later in order[place + 1 :]
    )


def _possible(order: Sequence[Op]) -> bool:
    states = {MODEL.initial()}
    for operation in order:
        states = {reached for state in states for reached in MODEL.step(state, operation.call)}
    return bool(states)


def _random_history(rng: random.Random, count: int, *, wrong: bool = False, lost_share: float = 0.15) -> list[Op]:
    """A map that behaves, seen by clients that overlap; `wrong`: one answer of it is another than it gave."""
    value: bytes | None = None
    revision, index = ABSENT, 0
    history: list[Op] = []
    for number in range(count):
        moment = float(number)
        called_at, returned_at = moment - rng.random() * 3, moment + rng.random() * 3
        index += rng.randint(1, 2)
        expected = rng.choice([None, None, revision, rng.randint(0, index)])
        call: KeyValueCall
        lost = rng.random() < lost_share
        match rng.choice("gpd"):
            case "g":
                call, lost = Get(value, revision), False
            case "p" if expected in (None, revision):
                value, revision = rng.choice([b"a", b"b"]), index
                call = Put(value, None if lost else index, expected)
            case "p":
                call = Put(b"c", None if lost else revision, expected, written=False)
            case _ if expected in (None, revision):
                call = Delete(None if lost else revision, expected)
                value, revision = None, ABSENT
            case _:
                call = Delete(None if lost else revision, expected, written=False)
        history.append(op(call, called_at, None if lost else returned_at))
    if wrong:
        at = rng.randrange(count)
        old = history[at]
        if old.returned_at is not None:
            history[at] = op(Get(rng.choice([None, b"a", b"b"]), rng.randint(0, index)), old.called_at, old.returned_at)
    rng.shuffle(history)
    return history


def test_the_search_agrees_with_trying_every_order() -> None:
    found = {True: 0, False: 0}
    for seed in range(600):
        rng = random.Random(seed)
        history = _random_history(rng, rng.randint(1, 6), wrong=seed % 2 == 0)
        expected = _explained(history)
        assert (check(MODEL, history) is None) is expected, f"seed {seed}: {history}"
        found[expected] += 1
    assert min(found.values()) > 100, found


def test_ten_thousand_operations_take_no_time_and_one_wrong_answer_is_found() -> None:
    """What right histories look like; and a read that is older than one before it, in the middle of all."""
    rng = random.Random(7)
    assert check(MODEL, _random_history(rng, 10_000, lost_share=0)) is None
    history = [op(Put(b"%d" % n, n + 1), 2.0 * n, 2.0 * n + 1) for n in range(10_000)]
    history += [op(Get(b"%d" % n, n + 1), 2.0 * n + 1.2, 2.0 * n + 1.6) for n in range(10_000)]
    assert check(MODEL, history) is None
    history[15_000] = op(Get(b"4998", 4999), 10_001.2, 10_001.6)
    violation = check(MODEL, history)
    assert violation is not None
    assert violation.stuck == history[15_000]


def test_a_search_that_is_too_long_says_so() -> None:
    """Writes that overlap all, and a read that no order explains: their orders are too many to try."""
    history = [op(Put(b"%d" % n, None), 0, None) for n in range(30)]
    history += [op(Get(None, ABSENT), 1, 2), op(Get(b"never", 99), 3, 4)]
    with pytest.raises(Undecided):
        check(MODEL, history, steps_max=2_000)


def test_a_state_whose_revision_nobody_saw_is_told_apart_from_older_ones() -> None:
    state = KeyState(b"a", None, 5)
    assert MODEL.step(state, Get(b"a", 6)) == [KeyState(b"a", 6, 6)]
    assert MODEL.step(state, Get(b"a", 5)) == []
