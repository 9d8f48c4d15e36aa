"""Is a history of operations linearizable? The search of Wing and Gong, with Lowe's memory of what was tried.

A history is linearizable if each operation can be given one moment between its call and its return such that, one
after the other at these moments, all answer what they did answer. An operation whose outcome nobody knows (its client
saw a time-out, or died) may take effect at any moment after its call, or never.

Operations on different keys are checked apart: a history is linearizable if it is so key by key (Herlihy and Wing,
§3.3). What an operation does is a `Model`'s to say; `KeyValueModel` is that of the replicated map.

The problem is NP-complete: what decides is how many operations overlap, not how many there are. Ten clients a key and
ten thousand operations take a fraction of a second; unknown outcomes overlap everything after them, so keep them few
on a key. `steps_max` bounds the search, and a search that ends there says so.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

STEPS_MAX: Final = 10_000_000  # about half a minute

State = TypeVar("State", bound=Hashable)
Call = TypeVar("Call")
Call_contra = TypeVar("Call_contra", contravariant=True)


class Undecided(Exception):
    """The search was ended before it could tell."""


class Model(Protocol[State, Call_contra]):
    """One object (one key): what its operations do to it, one after the other."""

    def initial(self) -> State:
        """Return the state before the first operation."""

    def step(self, state: State, call: Call_contra) -> Sequence[State]:
        """Return the states that `call`, with the answer it got, can lead to from `state`; none if it cannot be."""


@dataclass(frozen=True, slots=True)
class Operation(Generic[Call]):
    """One operation of a client. Times are of one clock, in any unit; `returned_at` None: the outcome is unknown."""

    key: Hashable
    call: Call
    called_at: float
    returned_at: float | None
    client: str = ""


@dataclass(frozen=True, slots=True)
class Violation(Generic[Call]):
    """Where it breaks: `linearized` is the longest order found, and `stuck` returned before any that could follow."""

    key: Hashable
    linearized: tuple[Operation[Call], ...]
    stuck: Operation[Call]
    pending: tuple[Operation[Call], ...]
    """Other operations that were under way then."""

    def __str__(self) -> str:
        lines = [f"key {self.key!r}: no order of the operations explains the answer of", f"    {self.stuck}"]
        lines += ["the longest order that could be found ends with", *(f"    {op}" for op in self.linearized[-5:])]
        lines += ["while these were under way", *(f"    {op}" for op in self.pending)]
        return "\n".join(lines)


def check(
    model: Model[State, Call], history: Iterable[Operation[Call]], *, steps_max: int = STEPS_MAX
) -> Violation[Call] | None:
    """Return None if `history` is linearizable, else the violation on the first key that has one.

    Raises:
        Undecided: it could not be told within `steps_max` steps a key.
        ValueError: an operation returned before it was called.
    """
    by_key: dict[Hashable, list[Operation[Call]]] = {}
    for operation in history:
        if operation.returned_at is not None and operation.returned_at < operation.called_at:
            raise ValueError(f"returned before it was called: {operation}")
        by_key.setdefault(operation.key, []).append(operation)
    for operations in by_key.values():
        violation = _Search(model, operations).run(steps_max)
        if violation is not None:
            return violation
    return None


class _Search(Generic[State, Call]):
    """One key. The calls and returns not yet passed are a doubly linked list in the order of time; 0 is its head."""

    def __init__(self, model: Model[State, Call], operations: Sequence[Operation[Call]]) -> None:
        self._model = model
        self._operations = sorted(operations, key=lambda operation: operation.called_at)
        # At equal times calls come first: then more can overlap, and nothing is refused that might be right.
        events = [(op.called_at, 0, number) for number, op in enumerate(self._operations)]
        events += [
            (op.returned_at, 1, number) for number, op in enumerate(self._operations) if op.returned_at is not None
        ]
        events.sort()
        self._open = sum(op.returned_at is not None for op in self._operations)
        size = len(events) + 1
        self._next = [*range(1, size), 0]
        self._previous = [size - 1, *range(size - 1)]
        self._operation = [-1, *(number for _, _, number in events)]
        self._is_call = [False, *(kind == 0 for _, kind, _ in events)]
        self._return_of = [0] * len(self._operations)
        for place in range(1, size):
            if not self._is_call[place]:
                self._return_of[self._operation[place]] = place

    def run(self, steps_max: int) -> Violation[Call] | None:
        """Search, depth first; what was reached once with the same operations done and the same state is not again."""
        tried: set[tuple[int, int, State]] = set()
        stack: list[tuple[int, Iterator[State], State, int, int]] = []
        state = self._model.initial()
        done_below, done_above = 0, 0  # operations below the first are linearized, and those of the bits above it
        best: tuple[int, ...] = ()
        best_stuck = -1
        steps = 0
        place = self._next[0]
        options: Iterator[State] | None = None
        while self._open:
            steps += 1
            if steps > steps_max:
                raise Undecided(f"not decided after {steps_max} steps, {len(self._operations)} operations")
            if not self._is_call[place]:
                # Whoever returned here must be linearized before; it is not.
                if len(stack) >= len(best) or best_stuck < 0:
                    best, best_stuck = tuple(self._operation[at] for at, *_ in stack), self._operation[place]
                if not stack:
                    return self._violation(best, best_stuck)
                place, options, state, done_below, done_above = stack.pop()
                self._put_back(place)
            number = self._operation[place]
            if options is None:
                options = iter(self._model.step(state, self._operations[number].call))
            for reached in options:
                below, above = _mark(done_below, done_above, number)
                if (below, above, reached) not in tried:
                    tried.add((below, above, reached))
                    stack.append((place, options, state, done_below, done_above))
                    state, done_below, done_above = reached, below, above
                    self._take_out(place)
                    place = self._next[0]
                    break
            else:
                place = self._next[place]
            options = None
        return None

    def _take_out(self, call: int) -> None:
        returned = self._return_of[self._operation[call]]
        for place in (call, returned) if returned else (call,):
            self._next[self._previous[place]] = self._next[place]
            self._previous[self._next[place]] = self._previous[place]
        self._open -= returned != 0

    def _put_back(self, call: int) -> None:
        returned = self._return_of[self._operation[call]]
        for place in (returned, call) if returned else (call,):
            self._next[self._previous[place]] = place
            self._previous[self._next[place]] = place
        self._open += returned != 0

    def _violation(self, best: Sequence[int], stuck: int) -> Violation[Call]:
        operations = self._operations
        end = operations[stuck].returned_at
        assert end is not None, "only what returned can be stuck"
        done = {*best, stuck}
        pending = [op for number, op in enumerate(operations) if number not in done and op.called_at <= end]
        linearized = tuple(operations[number] for number in best)
        return Violation(operations[stuck].key, linearized, operations[stuck], tuple(pending))


def _mark(below: int, above: int, number: int) -> tuple[int, int]:
    """Return the set of linearized operations with `number` in it. Small, as most are done in order."""
    above |= 1 << (number - below)
    while above & 1:
        above >>= 1
        below += 1
    return below, above


# The replicated map.

ABSENT: Final = 0
"""The revision of a key that is not there."""


@dataclass(frozen=True, slots=True)
class Get:
    """It answered `value` at `revision`, or that there is none (None, ABSENT)."""

    value: bytes | None
    revision: int


@dataclass(frozen=True, slots=True)
class Put:
    """It wrote `value`. `expected` None: whatever was there; else only at that revision (ABSENT: if nothing was).

    `revision` is the answer: of the new value if it was written, of what was there in its place if not; None if the
    outcome is unknown.
    """

    value: bytes
    revision: int | None
    expected: int | None = None
    written: bool = True


@dataclass(frozen=True, slots=True)
class Delete:
    """As `Put`, but the key goes. `revision` of a deletion that was done is that of what was deleted, or ABSENT."""

    revision: int | None
    expected: int | None = None
    written: bool = True


KeyValueCall = Get | Put | Delete


@dataclass(frozen=True, slots=True)
class KeyState:
    """A key. `revision` None: written by somebody whose answer nobody saw, so it is one above `floor`."""

    value: bytes | None = None
    revision: int | None = ABSENT
    floor: int = 0


class KeyValueModel:
    """A key of the map with compare-and-set. Revisions grow, so an old value cannot pass for the same one again."""

    def initial(self) -> KeyState:
        """Return a key that is not there."""
        return KeyState()

    def step(self, state: KeyState, call: KeyValueCall) -> Sequence[KeyState]:
        """Return what the key can be after `call`."""
        if isinstance(call, Get):
            seen = _at(state, call.revision)
            return [seen] if seen is not None and seen.value == call.value else []
        if call.revision is None:
            return self._unknown(state, call)
        if not call.written:
            seen = _at(state, call.revision)
            return [seen] if seen is not None and call.expected != call.revision else []
        if call.expected is not None:
            seen = _at(state, call.expected)
            if seen is None:
                return []
            state = seen
        if isinstance(call, Delete):
            seen = _at(state, call.revision)
            return [] if seen is None else [KeyState(None, ABSENT, seen.floor)]
        if call.revision <= state.floor:
            return []
        return [KeyState(call.value, call.revision, call.revision)]

    def _unknown(self, state: KeyState, call: Put | Delete) -> Sequence[KeyState]:
        """It took effect, or a comparison failed; that it never came is the same as if it came last of all."""
        results = []
        seen = state if call.expected is None else _at(state, call.expected)
        if seen is not None:
            if isinstance(call, Put):
                results.append(KeyState(call.value, None, seen.floor))
            else:
                results.append(KeyState(None, ABSENT, seen.floor))
        if call.expected is not None and state.revision != call.expected:
            results.append(state)
        return results


def _at(state: KeyState, revision: int) -> KeyState | None:
    """Return `state` if it can be at `revision`, with what that tells; else None."""
    if state.revision == revision:
        return state
    if state.revision is None and revision > state.floor:
        return KeyState(state.value, revision, revision)
    return None
