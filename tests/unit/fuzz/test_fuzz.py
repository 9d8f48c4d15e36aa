"""A short run of `make fuzz`."""

from __future__ import annotations

import os
from importlib.util import find_spec
from random import Random

import pytest

if find_spec("smtpraft.smtp._fastscan") is None and os.environ.get("SMTPRAFT_REQUIRE_EXTENSIONS", "0") in ("", "0"):
    pytest.skip("the compiled half is not built", allow_module_level=True)

from .subjects import SUBJECTS, conversation, run


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_halves_find_the_same(subject: str) -> None:
    for _ in run(subject, 1, 1500):
        pass


def test_the_inputs_reach_what_they_are_for() -> None:
    """A fuzzer whose inputs all fail at the first octet finds nothing."""
    texts = [conversation(Random(number)) for number in range(300)]
    assert sum(b"\r\n..\r\n" in text for text in texts) > 10
    assert sum(b"\r\n.\r\nDATA\r\n" in text for text in texts) > 10
    assert sum(b"\0" in text for text in texts) > 10
