"""Which half of a package of plain modules runs: the compiled modules where they are built, or what they are made of.

`raft.cpython-….so` lies beside `raft.py` and is made of it, with the types of `raft.pxd`. Of two modules of a name
Python takes the compiled one; `SMTPRAFT_PURE=1` in the environment asks for the plain ones. The compiled ones call each
other without Python between them, so there is no mixture: one that is there but does not load is an error, and so is
one that is missing beside others.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType


def choose(module_file: str) -> None:
    """Choose for the package that this file lies in. To be called before any module of it is imported."""
    if os.environ.get("SMTPRAFT_PURE", "0") not in ("", "0"):
        # A finder for this directory alone, that knows of no other files than sources.
        directory = str(Path(module_file).parent)
        sys.path_importer_cache[directory] = FileFinder(directory, (SourceFileLoader, SOURCE_SUFFIXES))


def is_compiled(module: ModuleType) -> bool:
    """Is this one of the compiled modules?"""
    return not str(module.__file__).endswith(".py")
