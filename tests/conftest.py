"""What every test may use."""

from __future__ import annotations

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


def pytest_configure() -> None:
    """Decline to test a compiled core that was made of other sources than those that lie beside it."""
    package = find_spec("smtpraft.consensus")
    assert package is not None
    for directory in package.submodule_search_locations or ():
        for library in Path(directory).glob("*.so"):
            source = library.with_name(f"{library.name.partition('.')[0]}.py")
            newest = max(path.stat().st_mtime for path in (source, source.with_suffix(".pxd")) if path.exists())
            if newest > library.stat().st_mtime:
                pytest.exit(f"{library.name} is older than its source: `pip install -e .`, or delete *.so there", 4)


@pytest.fixture(params=["_purelog", "_fastlog"])
def half(request: pytest.FixtureRequest) -> ModuleType:
    """Each half of `fastlog` in turn: a test that takes this runs once per twin."""
    name = f"smtpraft.{request.param}"
    if find_spec(name) is None and os.environ.get("SMTPRAFT_REQUIRE_EXTENSIONS", "0") in ("", "0"):
        pytest.skip("the compiled half is not built")
    return import_module(name)
