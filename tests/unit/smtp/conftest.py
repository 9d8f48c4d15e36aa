"""Each test of a conversation runs once on each engine, each test of the scanners on each half."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import pytest

from smtpraft.config import ENGINES

from .peer import Peer


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The engine that every `Peer` of the test talks to."""
    monkeypatch.setattr(Peer, "engine", request.param)
    return str(request.param)


@pytest.fixture(params=["_purescan", "_fastscan"], scope="session")
def scan(request: pytest.FixtureRequest) -> ModuleType:
    """Each half of the scanners."""
    return import_module(f"smtpraft.smtp.{request.param}")
