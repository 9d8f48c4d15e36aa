"""The table of targets: every row can be judged, and is judged by what one run measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from smtpraft.cli.bench import figures as kept
from smtpraft.cli.bench.figures import Figures
from smtpraft.cli.bench.targets import Row, judge, rows


def row(*, over: tuple[str, ...] = ("b",), least: float | None = 2.0, take: str = "median") -> Row:
    most = None if least is not None else 2.0
    return Row("a by b", "a", over, least, most, 3.0 if least else 1.0, take, "", 2)


def test_ratios_are_taken_within_a_round() -> None:
    figures = Figures(values={"a": [10.0, 100.0, 30.0], "b": [5.0, 25.0, 10.0]})
    verdict = judge(row(), figures)
    assert verdict.values == (2.0, 4.0, 3.0)
    assert (verdict.value, verdict.word, verdict.stretched) == (3.0, "PASS", True)
    assert verdict.measured == "3.00 (2.00 to 4.00)"


def test_sums_below_the_line() -> None:
    assert judge(row(over=("b", "c")), Figures(values={"a": [10.0], "b": [1.0], "c": [4.0]})).value == 2.0


def test_other_rounds_are_compared_by_their_median() -> None:
    assert judge(row(), Figures(values={"a": [6.0, 8.0], "b": [1.0, 2.0, 9.0]})).values == (3.0, 4.0)


@pytest.mark.parametrize(("value", "word"), [(1.99, "FAIL"), (2.0, "PASS")])
def test_at_least(value: float, word: str) -> None:
    assert judge(row(over=()), Figures(values={"a": [value]})).word == word


@pytest.mark.parametrize(
    ("value", "word", "stretched"), [(2.01, "FAIL", False), (2.0, "PASS", False), (1.0, "PASS", True)]
)
def test_at_most(value: float, word: str, stretched: bool) -> None:
    verdict = judge(row(over=(), least=None), Figures(values={"a": [value]}))
    assert (verdict.word, verdict.stretched) == (word, stretched)


def test_the_tail() -> None:
    values = [float(number) for number in range(1, 201)]
    assert judge(row(over=(), take="p99"), Figures(values={"a": values})).value == 198.0
    assert judge(row(over=(), take="p99"), Figures(values={"a": [1.0, 5.0, 3.0]})).value == 5.0


def test_what_is_missing_says_why() -> None:
    verdict = judge(row(), Figures(values={"a": [1.0]}, reasons={"b": "not installed"}))
    assert (verdict.word, verdict.value, verdict.measured) == ("-", None, "b: not installed")


def test_every_row_of_the_package_is_a_row() -> None:
    found = rows()
    assert len(found) >= 20
    for each in found:
        least = each.least is not None
        limit = each.least if least else each.most
        assert limit is not None
        assert each.stretch is not None
        assert (each.stretch >= limit) if least else (each.stretch <= limit), each.what


def test_no_row_is_a_bare_time() -> None:
    """What a machine takes for something is measured beside it; only what a user waits for once is in seconds."""
    bare = {each.what: each.unit for each in rows() if not each.over}
    assert set(bare.values()) == {" MB", " s"}


@pytest.mark.parametrize(
    "text",
    ['[[row]]\nwhat="x"\n', '[[row]]\nwhat="x"\nfigure="a"\n', '[[row]]\nwhat="x"\nfigure="a"\nleast=1\nmost=2\n',
     '[[row]]\nwhat="x"\nfigure="a"\nleast=1\nfaster=2\n', '[[row]]\nwhat="x"\nfigure="a"\nleast=1\ntake="best"\n'],
)  # fmt: skip
def test_a_bad_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "targets.toml"
    path.write_text(text)
    with pytest.raises(ValueError):
        rows(path)


def test_figures_are_kept(tmp_path: Path) -> None:
    figures = Figures({"x": "y"}, {"a": [1.5]}, {"s": [(1.0, 2.0)]}, {"b": "no"}, ["careful"])
    figures.dump(tmp_path / "f.json")
    assert kept.read(tmp_path / "f.json") == figures
