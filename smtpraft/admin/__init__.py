"""The HTTP API that operators, probes and the command line talk to. Nothing changes by GET."""

from __future__ import annotations
