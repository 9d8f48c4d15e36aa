"""`python -m smtpraft`"""

from __future__ import annotations

import sys

from smtpraft.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
