"""Each test of a conversation runs once on each engine, each test of the scanners on each half."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import pytest

from smtpraft.config import ENGINE_FAST, ENGINES
from smtpraft.smtp import COMPILED, server

from .halves import plain_modules
from .peer import Peer

PLAIN = f"{ENGINE_FAST}, plain"


@pytest.fixture(params=[*ENGINES, *([PLAIN] if COMPILED else [])])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The engine that every `Peer` of the test talks to: each of them, and what the compiled one is made of."""
    name = str(request.param)
    if name == PLAIN:
        name = ENGINE_FAST
        monkeypatch.setattr(server, "FastSession", plain_modules()["fast"].FastSession)
    monkeypatch.setattr(Peer, "engine", name)
    return name


@pytest.fixture(params=["_purescan", "_fastscan"], scope="session")
def scan(request: pytest.FixtureRequest) -> ModuleType:
    """Each half of the scanners."""
    name = f"smtpraft.smtp.{request.param}"
    if find_spec(name) is None and os.environ.get("SMTPRAFT_REQUIRE_EXTENSIONS", "0") in ("", "0"):
        pytest.skip("the compiled half is not built")
    return import_module(name)
