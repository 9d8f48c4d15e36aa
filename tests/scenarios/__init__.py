"""Scenario files: text in, text out, for the consensus core.

`python -m tests.scenarios [DIRECTORY]` runs all and reports every failed command; pytest runs each file as one test.
"""
