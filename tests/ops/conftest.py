"""What the tests of operating need, beyond the default ones, is in the group `ops`: `make test-ops` installs it."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = [] if find_spec("websockets") else ["test_page.py", "test_haproxy.py"]
