"""`python -m tests.scenarios [DIRECTORY]`, from the root of the repository."""

from __future__ import annotations

import sys

from .report import main

sys.exit(main(sys.argv[1:]))
