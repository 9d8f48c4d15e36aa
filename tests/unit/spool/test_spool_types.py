"""Message ids, and what the values of the queue say of themselves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpraft.spool.types import (
    INDEX_MAX,
    ORDINAL_MAX,
    MessageId,
    index_of,
    message_id,
    number_of,
    parse_message_id,
)

INDEX = st.integers(1, INDEX_MAX)
ORDINAL = st.integers(0, ORDINAL_MAX)


@given(INDEX, ORDINAL)
def test_an_id_says_where_it_comes_from(index: int, ordinal: int) -> None:
    message = message_id(index, ordinal)
    assert len(message) == 12
    assert index_of(message) == index
    assert number_of(message) == index << 12 | ordinal


@given(INDEX, ORDINAL, INDEX, ORDINAL)
def test_ids_sort_as_text_in_the_order_of_the_log(index: int, ordinal: int, index_2: int, ordinal_2: int) -> None:
    assert (message_id(index, ordinal) < message_id(index_2, ordinal_2)) == ((index, ordinal) < (index_2, ordinal_2))


def test_an_id_looks_like_this() -> None:
    assert message_id(1) == "000000000400"
    assert message_id(123_456_789, 5) == "0000EPYD2M05"
    assert message_id(INDEX_MAX, ORDINAL_MAX) == "ZZZZZZZZZZZZ"


@pytest.mark.parametrize(("index", "ordinal"), [(0, 0), (-1, 0), (INDEX_MAX + 1, 0), (1, -1), (1, ORDINAL_MAX + 1)])
def test_there_are_no_ids_out_of_bounds(index: int, ordinal: int) -> None:
    with pytest.raises(ValueError, match="no message id"):
        message_id(index, ordinal)


@pytest.mark.parametrize(
    "text", ["", "0", "0" * 12, "0000000004U0", "00000000040", "0000000004000", "00000000040é", "00000000040a"]
)
def test_what_is_no_id_is_said_to_be_none(text: str) -> None:
    with pytest.raises(ValueError, match="is no message id"):
        number_of(text)


def test_people_may_write_an_id_carelessly() -> None:
    assert parse_message_id(" 0000epyd2m05\n") == "0000EPYD2M05"
    assert parse_message_id("ooooepyd2mo5") == "0000EPYD2M05"
    assert parse_message_id("iL0000000000") == MessageId("110000000000")
    with pytest.raises(ValueError, match="is no message id"):
        parse_message_id("postmaster")
