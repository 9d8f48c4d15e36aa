"""The core does what the scenario files say: message for message, state for state, on both halves, with any seed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

from smtpraft.fastlog import Log

from . import report

SEEDS = (0, 1, 2)
TWINS = ("_purelog", "_fastlog")


@pytest.fixture(params=TWINS)
def new_log(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Log]:
    """The log of one half; the core counts and verifies with the same half."""
    try:
        twin = importlib.import_module(f"smtpraft.{request.param}")
    except ModuleNotFoundError:
        pytest.skip("the compiled half is not built")
    for name in ("tracker", "tally"):
        monkeypatch.setattr(f"smtpraft.consensus.{name}.quorum_index", twin.quorum_index)
    monkeypatch.setattr("smtpraft.consensus.follower.block_range", twin.block_range)
    log: Callable[[], Log] = twin.Log
    return log


def _cases() -> list[object]:
    cases: list[object] = []
    for root, name in ((report.directory(), ""), (report.OWN, "own/")):
        for kind in report.KINDS:
            paths = report.files(kind, root)
            cases += [pytest.param(kind, path, id=f"{name}{kind}/{path.stem}") for path in paths]
            if not paths and not name:
                reason = f"no {kind} files in {root}; set {report.ENVIRONMENT}"
                cases.append(pytest.param(kind, root / kind, id=kind, marks=pytest.mark.skip(reason=reason)))
    return cases


@pytest.mark.parametrize(("kind", "path"), _cases())
def test_the_core_follows_the_scenario(kind: str, path: Path, new_log: Callable[[], Log]) -> None:
    """Nothing in a file depends on the seed."""
    for seed in SEEDS:
        result = report.run_file(path, kind, seed=seed, new_log=new_log)
        assert result.ok, f"seed {seed}\n{result.text()}"
