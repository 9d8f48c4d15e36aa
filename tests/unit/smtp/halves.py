"""What the compiled session is made of, loaded beside it."""

from __future__ import annotations

import sys
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from smtpraft.smtp import server

NAMES = ("memory", "protocol", "fast")


@cache
def plain_modules() -> dict[str, ModuleType]:
    """Return the session's modules, from their sources, by their last names."""
    taken = {f"smtpraft.smtp.{name}": sys.modules[f"smtpraft.smtp.{name}"] for name in NAMES}
    plain: dict[str, ModuleType] = {}
    try:
        for name, path in zip(taken, NAMES, strict=True):
            spec = spec_from_file_location(name, Path(server.__file__).with_name(f"{path}.py"))
            assert spec is not None
            assert spec.loader is not None
            sys.modules[name] = plain[path] = module_from_spec(spec)
            spec.loader.exec_module(plain[path])
    finally:
        sys.modules.update(taken)
    return plain
