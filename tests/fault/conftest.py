"""What the fault tests share: a directory that is gone afterwards, uvloop, and figures at the end of the run."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import uvloop

from .figures import Figures

_FIGURES = pytest.StashKey[Figures]()


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Clients and sink share two cores with the nodes: the faster loop."""
    return {"uvloop": uvloop.new_event_loop}


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_FIGURES] = Figures()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was measured. Nothing of it decides: a shared machine is no place for that."""
    lines = config.stash[_FIGURES].lines() if _FIGURES in config.stash else []
    if lines:
        terminalreporter.section("figures of the fault tests (this machine, shared; nothing rests on them)")
        for line in lines:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> Figures:
    """Where a test leaves what it measured."""
    return pytestconfig.stash.setdefault(_FIGURES, Figures())


@pytest.fixture(scope="module")
def module_directory() -> Iterator[Path]:
    """As `directory`, for all tests of a module together."""
    yield from _directory()


@pytest.fixture
def directory() -> Iterator[Path]:
    """An empty directory, removed after the test; SMTPRAFT_KEEP=1 in the environment keeps it."""
    yield from _directory()


def _directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="smtpraft-fault-"))
    try:
        yield path
    finally:
        if os.environ.get("SMTPRAFT_KEEP"):
            print(f"kept: {path}")
        else:
            shutil.rmtree(path, ignore_errors=True)
