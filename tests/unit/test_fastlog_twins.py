"""The compiled half does what the plain half does: values and errors alike, for bad arguments too."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from smtpraft import _purelog

_fastlog = pytest.importorskip("smtpraft._fastlog")

U64_MAX: Final = 2**64 - 1


def outcome(function: Callable[..., object], *arguments: object) -> object:
    """All that a caller can see: the value, or the type of the error."""
    try:
        value = function(*arguments)
    except Exception as error:
        return type(error)
    if isinstance(value, list) and value and isinstance(value[0], memoryview):
        return [bytes(span) for span in value]
    return value


EDGES = st.sampled_from(
    [-1, 0, 1, 255, 256, 2**32 - 1, 2**32, 2**63, U64_MAX - 2, U64_MAX - 1, U64_MAX, 2**64, -(2**70)]
)
NOT_NUMBERS: st.SearchStrategy[object] = st.sampled_from([1.5, 2.0, None, "1", b"1", [], True, False])
NUMBERS = st.one_of(st.integers(0, 300), st.integers(0, U64_MAX), EDGES, NOT_NUMBERS)
NOT_BYTES = st.sampled_from([None, "text", 3, [1, 2], (b"x",), 1.5])
PAYLOADS = st.lists(st.binary(max_size=40), max_size=5)
NOT_PAYLOADS = st.sampled_from([None, "text", 7, b"abc", [b"x", "y"], [bytearray(b"x")], (b"x", None), {b"x": 1}])


COMMANDS = st.builds(
    lambda tag, session, rest: bytes((tag,)) + session.to_bytes(8) + rest,
    st.sampled_from([1, 1, 1, 0, 2]),
    st.sampled_from([0, 1, 7, U64_MAX]),
    st.binary(max_size=40),
)


@st.composite
def blocks(draw: st.DrawFn) -> bytes:
    """A block; often with a hole, a step back, a flipped byte, a cut end or other bytes after it."""
    index = draw(st.one_of(st.integers(1, 20), st.integers(1, U64_MAX - 10)))
    term = draw(st.integers(0, 5))
    parts = []
    for payload in draw(st.lists(st.one_of(st.binary(max_size=20), COMMANDS), min_size=1, max_size=5)):
        parts.append(_purelog.encode_entries(term, index, draw(st.integers(0, 9)), draw(st.integers(0, 3)), [payload]))
        index += draw(st.sampled_from([1, 1, 1, 1, 1, 1, 1, 1, 0, 2]))
        term = max(0, term + draw(st.sampled_from([0, 0, 0, 0, 1, 1, 2, 3, -1])))
    block = bytearray(b"".join(parts))
    damage = draw(st.sampled_from(["none", "none", "none", "flip", "cut", "more"]))
    if damage == "flip":
        block[draw(st.integers(0, len(block) - 1))] ^= draw(st.integers(1, 255))
    elif damage == "cut":
        del block[draw(st.integers(0, len(block) - 1)) :]
    elif damage == "more":
        block += draw(st.binary(min_size=1, max_size=60))
    return bytes(block)


DATA = st.one_of(
    st.binary(max_size=100),
    st.binary(max_size=100).map(bytearray),
    st.binary(max_size=100).map(lambda data: memoryview(data)),
    st.binary(max_size=100).map(lambda data: memoryview(data)[::3]),
    blocks(),
    NOT_BYTES,
)


def test_the_halves_have_the_same_names() -> None:
    assert _fastlog.__all__ == _purelog.__all__
    for name in _purelog.__all__:
        plain, compiled = getattr(_purelog, name), getattr(_fastlog, name)
        if isinstance(plain, type) and issubclass(plain, Exception):
            assert plain is compiled, "one except clause for both"
        elif not callable(plain):
            assert plain == compiled
    for kind in ("Log", "FrameDecoder"):
        plain, compiled = (
            {name for name in dir(getattr(half, kind)) if not name.startswith("_")} for half in (_purelog, _fastlog)
        )
        assert plain == compiled


@given(data=DATA, value=NUMBERS)
def test_checksums_agree(data: object, value: object) -> None:
    assert outcome(_fastlog.crc32c, data, value) == outcome(_purelog.crc32c, data, value)


@given(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.one_of(PAYLOADS, PAYLOADS, NOT_PAYLOADS)))
def test_encoders_of_entries_agree(arguments: tuple[object, ...]) -> None:
    assert outcome(_fastlog.encode_entries, *arguments) == outcome(_purelog.encode_entries, *arguments)


@given(st.one_of(blocks(), blocks(), DATA))
def test_decoders_of_entries_agree(block: object) -> None:
    assert outcome(_fastlog.decode_entries, block) == outcome(_purelog.decode_entries, block)
    assert outcome(_fastlog.block_range, block) == outcome(_purelog.block_range, block)


@given(st.one_of(blocks(), blocks(), DATA), st.one_of(st.sampled_from([0, 1, 7, U64_MAX]), NUMBERS))
def test_readers_of_commands_agree(block: object, session: object) -> None:
    for start in (0, 36, session):
        assert outcome(_fastlog.commands, block, start) == outcome(_purelog.commands, block, start)
    assert outcome(_fastlog.proposed, block, session) == outcome(_purelog.proposed, block, session)


@given(st.tuples(NUMBERS, st.one_of(st.binary(max_size=90), DATA), NUMBERS))
def test_encoders_of_frames_agree(arguments: tuple[object, ...]) -> None:
    assert outcome(_fastlog.encode_frame, *arguments) == outcome(_purelog.encode_frame, *arguments)


@given(
    frames=st.lists(
        st.tuples(st.integers(0, 255), st.binary(max_size=30), st.binary(max_size=90)), min_size=1, max_size=4
    ),
    flip=st.one_of(st.none(), st.none(), st.tuples(st.integers(0, 10_000), st.integers(1, 255))),
    cuts=st.lists(st.integers(0, 600), max_size=8),
    max_bytes=st.sampled_from([0, 20, 100, 2**20, U64_MAX]),
)
def test_decoders_of_frames_agree(
    frames: list[tuple[int, bytes, bytes]], flip: tuple[int, int] | None, cuts: list[int], max_bytes: int
) -> None:
    """After every piece, whatever the pieces are and whether the stream is whole."""
    stream = bytearray(b"".join(_purelog.encode_frame(kind, head, len(tail)) + tail for kind, head, tail in frames))
    if flip:
        stream[flip[0] % len(stream)] ^= flip[1]
    edges = [0, *sorted(cut % len(stream) for cut in cuts), len(stream)]
    plain, compiled = _purelog.FrameDecoder(max_bytes), _fastlog.FrameDecoder(max_bytes)
    decoded = []
    for start, end in pairwise(edges):
        piece = bytes(stream[start:end])
        result = outcome(plain.feed, piece)
        assert outcome(compiled.feed, piece) == result
        if isinstance(result, list):
            decoded += result
    if not flip and max_bytes > 200:
        assert decoded == frames


@given(st.one_of(NUMBERS, st.just(5)), st.one_of(NUMBERS, st.just(1)), DATA)
def test_new_decoders_agree(max_bytes: object, version: object, data: object) -> None:
    def feed_new(half: Any) -> object:
        return half.FrameDecoder(max_bytes, version).feed(data)

    assert outcome(feed_new, _fastlog) == outcome(feed_new, _purelog)


FIELDS = st.lists(st.one_of(st.integers(0, U64_MAX), st.integers(0, U64_MAX), NUMBERS), min_size=7, max_size=10)


def _binary_of(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


@given(FIELDS)
def test_encoders_of_heartbeats_agree(fields: list[object]) -> None:
    for name in ("encode_heartbeat", "encode_heartbeat_response"):
        assert outcome(getattr(_fastlog, name), *fields) == outcome(getattr(_purelog, name), *fields)


@given(st.one_of(st.binary(min_size=63, max_size=73), st.sampled_from([64, 72]).flatmap(_binary_of), DATA))
def test_decoders_of_heartbeats_agree(head: object) -> None:
    for name in ("decode_heartbeat", "decode_heartbeat_response"):
        assert outcome(getattr(_fastlog, name), head) == outcome(getattr(_purelog, name), head)


@given(
    st.one_of(
        st.lists(st.integers(0, U64_MAX), max_size=40),
        st.lists(NUMBERS, max_size=20),
        st.lists(st.integers(0, 9), max_size=7).map(tuple),
        st.sampled_from([None, "", "text", 5, b"", b"abc", {3: 1, 4: 1}]),
    )
)
def test_quorums_agree(matched: object) -> None:
    assert outcome(_fastlog.quorum_index, matched) == outcome(_purelog.quorum_index, matched)


@given(NUMBERS, NUMBERS)
def test_new_logs_agree(prev_index: object, prev_term: object) -> None:
    def facts_of_new(half: Any) -> object:
        log = half.Log(prev_index, prev_term)
        return log.first_index, log.last_index, log.prev_term, log.cached_first

    assert outcome(facts_of_new, _fastlog) == outcome(facts_of_new, _purelog)


class LogsAgree(RuleBasedStateMachine):
    """The two logs through one history, and beside them a dictionary of what they should hold."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = _purelog.Log()
        self.compiled = _fastlog.Log()
        self.model: dict[int, tuple[int, bytes]] = {}  # index: (term, payload)

    def both(self, name: str, *arguments: object) -> object:
        expected = outcome(getattr(self.plain, name), *arguments)
        assert outcome(getattr(self.compiled, name), *arguments) == expected, (name, arguments)
        return expected

    def index(self, data: st.DataObject) -> Any:
        """Mostly an index in or next to the log."""
        near = st.integers(max(0, self.plain.prev_index - 2), self.plain.last_index + 2)
        return data.draw(st.one_of(near, near, near, near, NUMBERS))

    @rule(more=st.integers(0, 1), payloads=st.lists(st.binary(max_size=30), min_size=1, max_size=4))
    def append(self, more: int, payloads: list[bytes]) -> None:
        term, first = self.plain.last_term + more, self.plain.last_index + 1
        block = self.both("append", term, 7, 0, payloads)
        if isinstance(block, bytes):
            self.model.update({index: (term, payload) for index, payload in enumerate(payloads, first)})

    @rule(arguments=st.tuples(NUMBERS, NUMBERS, NUMBERS, st.one_of(PAYLOADS, NOT_PAYLOADS)))
    def append_anything(self, arguments: tuple[object, ...]) -> None:
        first = self.plain.last_index + 1
        block = self.both("append", *arguments)
        if isinstance(block, bytes):
            self.model.update({index: (e[1], e[4]) for index, e in enumerate(_purelog.decode_entries(block), first)})

    @rule(data=st.data(), first_match=st.booleans())
    def append_block(self, data: st.DataObject, *, first_match: bool) -> None:
        """Entries as a leader of this or a later term would send them, or a little off."""
        low = min(max(1, self.plain.prev_index - 2), U64_MAX - 10)
        first = data.draw(st.integers(low, min(self.plain.last_index + 2, U64_MAX - 10)))
        before = first - 1
        known = self.plain.prev_index <= before <= self.plain.last_index
        term = self.plain.term(before) if known else self.plain.prev_term
        parts = []
        for index in range(first, first + data.draw(st.integers(1, 5))):
            same = index in self.model and data.draw(st.sampled_from([True, True, True, False]))
            if same:
                term = max(term, self.model[index][0])
            else:
                term = min(U64_MAX, term + data.draw(st.sampled_from([0, 0, 1])))
            parts.append(_purelog.encode_entries(term, index, 7, 0, [data.draw(st.binary(max_size=9))]))
        block = b"".join(parts)
        if first_match:
            self.both("match", block)
        from_index: Any = data.draw(st.one_of(st.just(0), st.integers(first - 1, first + len(parts)), NUMBERS))
        kind = data.draw(st.sampled_from([bytes, bytes, bytearray, memoryview]))
        if self.both("append_block", kind(block), from_index) is None:
            start = max(first, from_index)
            self.model = {index: entry for index, entry in self.model.items() if index < start}
            for index, entry_term, _, _, payload in _purelog.decode_entries(block):
                if index >= start:
                    self.model[index] = (entry_term, payload)

    @rule(block=st.one_of(blocks(), DATA))
    def match_anything(self, block: object) -> None:
        self.both("match", block)

    @rule(block=blocks())
    def append_corrupt_block(self, block: bytes) -> None:
        if outcome(_purelog.block_range, block) is _purelog.CorruptEntry:
            assert self.both("append_block", block) is _purelog.CorruptEntry

    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        from_index = self.index(data)
        if self.both("truncate", from_index) is None:
            self.model = {index: entry for index, entry in self.model.items() if index < from_index}

    @rule(data=st.data())
    def compact(self, data: st.DataObject) -> None:
        to_index = self.index(data)
        if self.both("compact", to_index) is None:
            self.model = {index: entry for index, entry in self.model.items() if index > to_index}

    @rule(data=st.data(), max_bytes=st.one_of(st.integers(0, 500), NUMBERS))
    def evict(self, data: st.DataObject, max_bytes: object) -> None:
        keep_from = data.draw(
            st.one_of(st.just(0), st.integers(self.plain.first_index, self.plain.last_index + 1), NUMBERS)
        )
        self.both("evict", max_bytes, keep_from)

    @rule(index=NUMBERS, term=st.one_of(st.integers(0, 3), NUMBERS))
    @precondition(lambda self: len(self.model) > 15)
    def restore(self, index: object, term: object) -> None:
        if self.both("restore", index, term) is None:
            self.model = {}

    @rule(data=st.data(), name=st.sampled_from(["size_bytes", "spans", "entries"]))
    def ask_range(self, data: st.DataObject, name: str) -> None:
        self.both(name, self.index(data), self.index(data))

    @rule(data=st.data(), max_bytes=st.one_of(st.integers(0, 300), NUMBERS))
    def ask_upto_bytes(self, data: st.DataObject, max_bytes: object) -> None:
        self.both("upto_bytes", self.index(data), self.index(data), max_bytes)

    @rule(data=st.data(), term=st.one_of(st.integers(0, 9), NUMBERS))
    def ask_conflict(self, data: st.DataObject, term: object) -> None:
        self.both("find_conflict_by_term", self.index(data), term)

    @rule(data=st.data(), name=st.sampled_from(["term", "offset"]))
    def ask_index(self, data: st.DataObject, name: str) -> None:
        self.both(name, self.index(data))

    @invariant()
    def same_facts(self) -> None:
        for name in (
            "prev_index",
            "prev_term",
            "first_index",
            "last_index",
            "last_term",
            "cached_first",
            "cached_bytes",
        ):
            assert getattr(self.compiled, name) == getattr(self.plain, name), name

    @invariant()
    def same_contents(self) -> None:
        first, cached, last = self.plain.first_index, self.plain.cached_first, self.plain.last_index
        assert list(self.model) == list(range(first, last + 1))
        for index, (term, _) in self.model.items():
            assert self.both("term", index) == term
            self.both("offset", index)
        entries = self.both("entries", cached, last)
        assert isinstance(entries, list)
        assert [(e[0], e[1], e[4]) for e in entries] == [(i, *self.model[i]) for i in range(cached, last + 1)]
        self.both("spans", cached, last)


TestLogsAgree = LogsAgree.TestCase
TestLogsAgree.settings = settings(max_examples=60, stateful_step_count=40)


@given(
    st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=5), max_size=4),
    st.integers(0, 400),
    st.integers(0, 255),
    st.booleans(),
)
def test_surveys_agree(payloads: list[list[bytes]], place: int, value: int, views: bool) -> None:
    """Whole blocks, and blocks with a byte that is another: the size of a record, a number, a checksum."""
    spans: list[bytes | memoryview] = []
    index = 1
    for number, batch in enumerate(payloads):
        block = bytearray(_purelog.encode_entries(3 + number, index, 9, _purelog.ENTRY_NORMAL, batch))
        index += len(batch)
        if place < len(block) and number == len(payloads) - 1:
            block[place] = value
        spans.append(memoryview(bytes(block)) if views else bytes(block))
    assert outcome(_fastlog.survey, spans) == outcome(_purelog.survey, spans)
