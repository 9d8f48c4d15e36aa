"""What a node says of its compiled parts."""

from __future__ import annotations

import pytest

from smtpraft import fastlog
from smtpraft.cli import halves

ALL = dict.fromkeys(halves.parts(), True)


def test_the_parts_are_named_and_the_log_is_one() -> None:
    assert halves.parts()["log"] is fastlog.COMPILED
    assert set(halves.parts()) > halves.IN_ABI3


@pytest.mark.parametrize("lacking", sorted(ALL))
def test_a_native_installation_lacks_nothing(lacking: str) -> None:
    assert halves.complete(ALL, abi3=False)
    assert not halves.complete(ALL | {lacking: False}, abi3=False)


@pytest.mark.parametrize("lacking", sorted(ALL))
def test_one_for_all_pythons_lacks_what_it_never_has(lacking: str) -> None:
    assert halves.complete(ALL | {lacking: False}, abi3=True) is (lacking not in halves.IN_ABI3)


def test_words() -> None:
    assert halves.words({"a": True, "b": True}) == "yes"
    assert halves.words({"a": False, "b": False}) == "no"
    assert halves.words({"a": True, "b": False, "c": True}) == "a, c but not b"
