"""Which parts run compiled, and whether that is all that could.

Each part has a plain twin that does the same; what is there is decided where each is imported (`fastlog`, `smtp.scan`,
`storage.fastwriter`, and `_half` for the core and the session). A wheel for all CPythons from 3.12 on (abi3) has the
log and its writer only, for the limited API makes the others no faster: such a node is as compiled as it can be.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Final

from smtpraft import consensus, fastlog, smtp
from smtpraft.smtp import scan
from smtpraft.storage import fastwriter

IN_ABI3: Final = frozenset({"log", "writer"})


def parts() -> dict[str, bool]:
    """Return each part that has a compiled half, and whether that half runs."""
    return {
        "log": fastlog.COMPILED,
        "core": consensus.COMPILED,
        "scanner": scan.COMPILED,
        "session": smtp.COMPILED,
        "writer": fastwriter.COMPILED,
    }


def complete(found: Mapping[str, bool], *, abi3: bool | None = None) -> bool:
    """Do all parts run compiled that this installation could have compiled?

    `abi3`: is it of the wheel for all CPythons? As it is, if not told.
    """
    abi3 = _is_abi3() if abi3 is None else abi3
    return all(runs for name, runs in found.items() if name in IN_ABI3 or not abi3)


def words(found: Mapping[str, bool]) -> str:
    """Return `yes`, `no` or `log, writer but not core, scanner, session`."""
    compiled, plain = ([name for name, runs in found.items() if runs is which] for which in (True, False))
    if compiled and plain:
        return f"{', '.join(compiled)} but not {', '.join(plain)}"
    return "yes" if compiled else "no"


def _is_abi3() -> bool:
    spec = find_spec("smtpraft._fastlog")
    return spec is not None and ".abi3." in (spec.origin or "")
