"""What every test may use."""

from __future__ import annotations

import hashlib
import json
import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings

# A shared machine can stall for longer than any deadline; `print_blob` gives what repeats a failure.
settings.register_profile(
    "smtpraft", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow], max_examples=100
)
settings.register_profile("thorough", settings.get_profile("smtpraft"), max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "smtpraft"))


MADE_OF = Path(__file__).parents[1] / "build" / "compiled-from.json"


def pytest_configure() -> None:
    """Decline to test compiled modules of this tree that were made of other sources than those that lie beside them."""
    package = find_spec("smtpraft")
    assert package is not None
    root = Path(str(package.origin)).parents[1]
    if root != MADE_OF.parents[1] or not MADE_OF.exists():
        return  # an installed wheel, or nothing was compiled here
    made_of: dict[str, str] = json.loads(MADE_OF.read_text())
    for name, known in made_of.items():
        file = root / name
        if not file.exists() or hashlib.sha256(file.read_bytes()).hexdigest() != known:
            pytest.exit(f"{name} is not what was compiled: `pip install -e .`, or delete *.so in smtpraft", 4)


@pytest.fixture(params=["_purelog", "_fastlog"])
def half(request: pytest.FixtureRequest) -> ModuleType:
    """Each half of `fastlog` in turn: a test that takes this runs once per twin."""
    name = f"smtpraft.{request.param}"
    if find_spec(name) is None and os.environ.get("SMTPRAFT_REQUIRE_EXTENSIONS", "0") in ("", "0"):
        pytest.skip("the compiled half is not built")
    return import_module(name)
