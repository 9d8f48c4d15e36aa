"""The simulator sees what it should see: bugs that are planted into the real code, one at a time."""

from __future__ import annotations

import pytest

from .planted.bank import BANK, HARMLESS, Bug
from .planted.hunt import hunt, planted

QUICK = [bug for bug in BANK if bug.quick]


def names(bug: Bug) -> str:
    return bug.name


@pytest.mark.parametrize("bug", BANK + HARMLESS, ids=names)
def test_a_planted_bug_still_has_a_place_in_the_code(bug: Bug) -> None:
    assert planted(bug) != bug.old


def test_the_bank_is_large_and_each_bug_is_another_one() -> None:
    assert len(BANK) >= 40
    assert len({bug.name for bug in BANK}) == len(BANK)


@pytest.mark.parametrize("bug", QUICK, ids=names)
def test_a_planted_bug_is_caught(bug: Bug) -> None:
    catch = hunt(bug, seeds=20, timeout_s=100)
    assert catch.seed is not None, f"{bug.name}: not seen in 20 seeds"


@pytest.mark.slow
@pytest.mark.timeout(1900)
@pytest.mark.parametrize("bug", [bug for bug in BANK if not bug.quick], ids=names)
def test_every_planted_bug_is_caught(bug: Bug) -> None:
    """At most 2,000 seeds. The table in `docs/reliability.md` says how many it took."""
    catch = hunt(bug, timeout_s=1800)
    assert catch.seed is not None, f"{bug.name}: not seen"
