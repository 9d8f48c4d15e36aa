"""A running node that replicates a state machine: consensus, storage and transport put together. It knows no mail."""

from __future__ import annotations
