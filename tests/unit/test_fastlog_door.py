"""Which half `smtpraft.fastlog` opens."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

SAY = "import smtpraft.fastlog as f; print(f.COMPILED, f.Log.__module__)"

needs_compiled = pytest.mark.skipif(find_spec("smtpraft._fastlog") is None, reason="the compiled half is not built")


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name != "SMTPRAFT_PURE"}
    return subprocess.run(
        [sys.executable, "-c", program],
        env=variables | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def blocked(error: str) -> str:
    """A program that opens the door while importing the compiled half raises `error`."""
    return f"""
import sys
class Block:
    def find_spec(name, path, target=None):
        if name == "smtpraft._fastlog":
            raise {error}
sys.meta_path.insert(0, Block)
{SAY}
"""


@needs_compiled
def test_the_compiled_half_is_taken_where_there_is_one() -> None:
    for value in ("", "0"):
        assert run(SAY, SMTPRAFT_PURE=value).stdout.split() == ["True", "smtpraft._fastlog"]


def test_the_plain_half_is_taken_when_asked_for() -> None:
    assert run(SAY, SMTPRAFT_PURE="1").stdout.split() == ["False", "smtpraft._purelog"]


def test_the_plain_half_is_taken_when_the_other_is_absent() -> None:
    program = blocked("ModuleNotFoundError('No module', name=name)")
    assert run(program).stdout.split() == ["False", "smtpraft._purelog"]


@pytest.mark.parametrize(
    "error",
    [
        "ImportError('undefined symbol', name=name)",
        "ModuleNotFoundError('No module', name='smtpraft.elsewhere')",
        "AssertionError('limits differ')",
    ],
)
def test_a_broken_half_is_an_error(error: str) -> None:
    result = run(blocked(error))
    assert result.returncode != 0
    assert error.split("(", maxsplit=1)[0] in result.stderr


def test_the_door_has_the_names_of_the_halves() -> None:
    from smtpraft import _purelog, fastlog

    assert sorted(fastlog.__all__) == sorted([*_purelog.__all__, "COMPILED"])
    assert all(hasattr(fastlog, name) for name in fastlog.__all__)
