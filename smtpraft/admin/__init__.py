"""The HTTP API that operators, probes and the command line talk to. It changes nothing but by POST."""

from __future__ import annotations
