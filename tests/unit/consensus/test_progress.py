"""What a leader remembers of one member."""

from __future__ import annotations

import pytest

from smtpraft.consensus.progress import Inflights, Progress, ProgressState

from .solo import N2


def new_progress(match_index: int, next_index: int, sent_commit: int = 0) -> Progress:
    progress = Progress(N2, next_index, Inflights(4, 0))
    progress.match_index = match_index
    progress.sent_commit = sent_commit
    return progress


@pytest.mark.parametrize(
    ("next_index", "sent_commit", "commit", "bumps"),
    [
        (10, 5, 6, True),
        (10, 5, 5, False),  # It knows.
        (10, 9, 12, False),  # It has nothing above 9 that this could commit.
        (10, 8, 12, True),
    ],
)
def test_a_commit_index_is_worth_an_append_if_it_is_news_and_of_use(
    next_index: int, sent_commit: int, commit: int, bumps: bool
) -> None:
    assert new_progress(0, next_index, sent_commit).can_bump_commit(commit) is bumps


def test_only_the_answer_to_the_last_probe_counts() -> None:
    """Answers may come late and out of order."""
    progress = new_progress(0, 10)
    progress.flow_paused = True
    assert not progress.decrease(5, 2)
    assert (progress.next_index, progress.flow_paused) == (10, True)
    assert progress.decrease(9, 4)
    assert (progress.next_index, progress.flow_paused) == (5, False)


def test_a_probe_never_goes_below_what_matches() -> None:
    """Invariant: match < next."""
    progress = new_progress(6, 10)
    assert progress.decrease(9, 2)
    assert progress.next_index == 7


def test_what_was_told_of_the_commit_index_is_forgotten_with_what_was_sent() -> None:
    """It came with entries that did not arrive."""
    progress = new_progress(3, 10, sent_commit=8)
    progress.state = ProgressState.REPLICATE
    progress.become_probe()
    assert (progress.next_index, progress.sent_commit) == (4, 3)


def test_the_window_counts_messages_and_bytes() -> None:
    window = Inflights(3, 100)
    for index, size in ((1, 30), (2, 30)):
        window.add(index, size)
    assert (window.count, window.size_bytes, window.full) == (2, 60, False)
    window.add(5, 50)
    assert window.full
    window.free_to(4)
    assert (window.count, window.size_bytes, window.full) == (1, 50, False)
    window.clear()
    assert (window.count, window.size_bytes) == (0, 0)
    window.add(6, 500)
    assert window.full
    with pytest.raises(AssertionError):
        window.add(7, 1)
