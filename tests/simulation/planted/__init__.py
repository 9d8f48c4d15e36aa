"""Known ways to get this wrong, planted one at a time into a copy of the package: the simulator must see each.

`bank` has the bugs, `hunt` plants one and looks for it; `python -m tests.simulation.planted` hunts them all and writes
the table into `docs/reliability.md`.
"""

from __future__ import annotations
