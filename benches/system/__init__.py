"""Our nodes beside others on this machine: `make bench-peers`.

The suites of `smtpraft bench`, and the same loads against Postfix, Exim, etcd and PySyncObj, round after round: what
counts is the ratio within a round, because machines drift. Figures are kept as JSON (`figures.json`), from which
`document` makes the tables and pictures of `docs/performance.md`; what they do not show stands there too.
"""
