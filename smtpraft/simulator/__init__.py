"""Whole clusters in virtual time, from a seed: the real consensus core, log, sessions and spool on bad machines.

`live` is one day of one cluster, `Plan.draw` says what breaks on it, `Invariants` what must hold whatever breaks. The
judges of histories (`linearizability`) are here as well.
"""

from __future__ import annotations
