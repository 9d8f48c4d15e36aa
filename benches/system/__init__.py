"""The whole system on this machine, next to Postfix: `make bench-system`.

Three real nodes and a private Postfix take the same mail from the same client in turn, round after round. What counts
is the ratio within a round, because machines drift. `comparison.py` is the main measurement, `memory.py` and
`failover.py` are modes of their own; `docs/performance.md` has the results and what they do not show.
"""
