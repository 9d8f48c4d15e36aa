"""The door to the scanners: the compiled half `_fastscan` where there is one, else its plain twin `_purescan`.

As with `fastlog`: `SMTPRAFT_PURE=1` asks for the plain one, and a compiled half that is there but does not load is an
error.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING or os.environ.get("SMTPRAFT_PURE", "0") not in ("", "0"):
    from smtpraft.smtp._purescan import CommandLines, ContentReader, plain_path

    COMPILED: bool = False
else:
    try:
        from smtpraft.smtp._fastscan import CommandLines, ContentReader, plain_path

        COMPILED = True
    except ModuleNotFoundError as error:
        if error.name != "smtpraft.smtp._fastscan":
            raise
        from smtpraft.smtp._purescan import CommandLines, ContentReader, plain_path

        COMPILED = False

__all__ = ["COMPILED", "CommandLines", "ContentReader", "plain_path"]
